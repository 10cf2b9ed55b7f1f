"""One exported graph, many readers: `capture(model, example)`.

The graph is PyTorch's own (`torch.export`), functional and not decomposed: a convolution is one
node, a linear map is one node, and every neuron is one node, `spikeformers::lif`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from spikeformers.errors import InputError
from spikeformers.layers import fold

__all__ = ["Graph", "capture", "capture_inference", "factors_of", "op_name", "short_name"]

_INPUT_KINDS = {
    InputKind.USER_INPUT: "image",
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}


@dataclass(frozen=True)
class Graph:
    """What a model computes, as a list of nodes in the order in which they run.

    Attributes:
        program: The exported program that the nodes belong to.
    """

    program: ExportedProgram

    @property
    def nodes(self) -> list[Node]:
        """Inputs, operations and the output."""
        return list(self.program.graph.nodes)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Name of an input node -> "image", "parameter", "buffer" or "constant"."""
        specs = self.program.graph_signature.input_specs
        return {spec.arg.name: _INPUT_KINDS[spec.kind] for spec in specs}

    def path(self, node: Node) -> str:
        """Return the path of the module that a node runs in; the model itself is ""."""
        stack = node.meta.get("nn_module_stack") or {"": ("", "")}
        return next(reversed(stack.values()))[0]

    def arguments(self, *inputs: Tensor) -> list[Tensor]:
        """Return a tensor for every input node: what `capture` was shown, or parameters."""
        tensors = {**self.program.state_dict, **self.program.constants}
        given = iter(inputs)
        return [
            next(given) if spec.target is None else tensors[spec.target]
            for spec in self.program.graph_signature.input_specs
        ]

    @torch.no_grad()
    def run(self, x: Tensor) -> Iterator[tuple[Node, Any]]:
        """Compute every node for an input of the captured shape, one after the other."""
        interpreter = Interpreter(self.program.graph_module)
        interpreter.args_iter = iter(self.arguments(x))
        for node in self.nodes:
            value = interpreter.env[node] = interpreter.run_node(node)
            yield node, value


def capture(model: nn.Module, example: Tensor, *more: Tensor, dynamic_shapes: Any = None) -> Graph:
    """Export a model in eval mode.

    Nothing is folded here: capture `layers.fold(model)` to see what would be deployed.

    Args:
        model: Any module that takes tensors, usually one.
        example: An input of the shape, dtype and device to capture, usually `[T, B, C, H, W]`.
        more: Further inputs of the model.
        dynamic_shapes: Which axes may have another size, as `torch.export.export` takes it.

    Raises:
        InputError: If a module is in training mode, `example` is not a tensor, or the operations
            depend on the values of the input, so that there is no one graph.
    """
    if not isinstance(example, Tensor):
        raise InputError(f"example is {type(example).__name__}: expected one encoded input tensor")
    for path, module in model.named_modules():
        if module.training:
            raise InputError(f"{path or 'model'!r} is in training mode: call model.eval() first")
    with torch.no_grad():
        # Bad input gets the model's own message: tracing would leave its checks out.
        model(example, *more)
    with warnings.catch_warnings():
        # PyTorch's own deep copies inside export trip over a name that PyTorch deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        try:
            program = torch.export.export(
                model, (example, *more), strict=False, dynamic_shapes=dynamic_shapes
            )
        except InputError:
            raise
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{type(model).__name__} has no fixed graph that could be exported: {first_line}"
            ) from error
        # An empty table decomposes nothing, but it makes the graph functional: no `relu_`, no
        # aliases, so that a node's value is one fact.
        return Graph(program.run_decompositions({}))


def capture_inference(model: nn.Module, example: Tensor) -> Graph:
    """Export what would be deployed: a folded eval copy; the model itself is left alone.

    Args:
        model: Any module that takes one tensor; in any mode.
        example: As in `capture`.
    """
    return capture(fold(copy.deepcopy(model).eval()), example)


def op_name(node: Node) -> str:
    """Return `aten::conv2d`, `spikeformers::lif`, `getitem` and the like; inputs have no name."""
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else node.target.__name__  # type: ignore[union-attr]


def short_name(node: Node) -> str:
    """Return `conv2d`, `lif` and the like."""
    return op_name(node).rpartition("::")[2]


def factors_of(node: Node) -> list[Node]:
    """Return the tensors that a product multiplies: `a` and `b` of `a b + c`."""
    name = op_name(node)
    arguments: Any = node.args[:2]
    if name == "aten::einsum":
        arguments = node.args[1]
    elif name in ("aten::addmm", "aten::baddbmm"):
        arguments = node.args[1:3]
    return [argument for argument in arguments if isinstance(argument, Node)]
