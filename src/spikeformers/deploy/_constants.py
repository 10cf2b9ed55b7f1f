"""What a graph computes from its parameters alone: a learned decay, a reshaped weight."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from spikeformers.analysis.capture import Graph


def parameters(graph: Graph) -> dict[Node, Tensor]:
    """Return the values of the parameters, buffers and constants of a captured graph."""
    specs = graph.program.graph_signature.input_specs
    tensors = {**graph.program.state_dict, **graph.program.constants}
    return {
        node: tensors[spec.target].detach()
        for node, spec in zip(graph.nodes, specs, strict=False)
        if spec.target is not None
    }


@torch.no_grad()
def constants(nodes: Iterable[Node], known: Mapping[Node, Any]) -> dict[Node, Any]:
    """Return the values of all nodes that depend on nothing but what is known."""
    values = dict(known)
    for node in nodes:
        is_operation = node.op == "call_function" and holds_tensors(node)
        if is_operation and all(operand in values for operand in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def holds_tensors(node: Node) -> bool:
    """Whether a node has tensors as its value, and not a size or nothing."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list)
