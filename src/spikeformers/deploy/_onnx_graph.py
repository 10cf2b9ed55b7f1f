"""From a captured graph to an ONNX model.

What depends on no input is computed here and stored, a learned decay for instance. A neuron is
written as the plain operations of its own reference loop, so that the file needs no operators of
ours. All sizes are constants but that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

import spikeformers
from spikeformers.analysis.capture import Graph, op_name
from spikeformers.deploy._constants import constants, holds_tensors, parameters
from spikeformers.deploy._onnx_operators import OPERATORS
from spikeformers.errors import ExportError, MissingExtraError
from spikeformers.ops.dsr.reference import dsr_forward
from spikeformers.ops.ilif.reference import ilif_burst_forward, ilif_forward
from spikeformers.ops.lif.reference import lif_forward

try:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "export") from error

OPSET, IR_VERSION = 18, 8

PREFIX = "model."
"""What stands before our paths where the model is wrapped to stream."""

REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    # Its last argument is of the backward pass.
    "spikeformers::dsr": lambda *arguments: dsr_forward(*arguments[:-1]),
    "spikeformers::ilif": ilif_forward,
    "spikeformers::ilif_burst": ilif_burst_forward,
    "spikeformers::lif": lif_forward,
}
"""Neuron -> the loop over time that says what it is."""

TYPES = {
    torch.bool: TensorProto.BOOL,
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
}


@dataclass
class Scope:
    """What is known while the nodes of one graph are written.

    Attributes:
        prefix: Stands before the names of its ONNX tensors.
        constants: Values of the nodes that depend on no input.
        names: ONNX tensors of the others; a tuple of names where a node has several outputs.
    """

    prefix: str = ""
    constants: dict[Node, Any] = field(default_factory=dict)
    names: dict[Node, Any] = field(default_factory=dict)


class Writer:
    """Writes ONNX nodes; the translations of `_onnx_operators` call it.

    Attributes:
        neurons: Name of a neuron's node in the captured graph -> the ONNX tensors of its current
            and of its spikes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.scope = Scope()
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, Tensor] = {}
        self.neurons: dict[str, tuple[str, str]] = {}
        self._bodies: dict[str, GraphModule] = {}
        self._batch: tuple[Any, str, int] | None = None
        specs = graph.program.graph_signature.input_specs
        self._labels = {
            node: spec.target.removeprefix(PREFIX)
            for node, spec in zip(graph.nodes, specs, strict=False)
            if spec.target is not None
        }

    def write(self, inputs: Sequence[str]) -> list[str]:
        """Write the whole graph and return the ONNX tensors of its outputs.

        Args:
            inputs: Names for the inputs.
        """
        self.scope.constants = constants(self.graph.nodes, parameters(self.graph))
        for node, name in zip(image_nodes(self.graph), inputs, strict=True):
            self.scope.names[node] = name
            self._note_batch(node)
        self._walk(self.graph.nodes, self._path)
        return [self.operand(node) for node in _outputs(self.graph.nodes)]

    def emit(self, op: str, *inputs: str, name: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; return the name of its output, or a tuple of names if there are more."""
        name = f"{self.scope.prefix}{name}"
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def operand(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """Return the ONNX tensor of a node, a number or a list, of a type if one is asked for."""
        if isinstance(value, Node) and value in self.scope.names:
            name, held = self.scope.names[value], value.meta["val"].dtype
            if dtype in (None, held):
                return name
            kind = TYPES[dtype]
            return self.emit("Cast", name, name=f"{value.name}/{_word(dtype)}", to=kind)
        tensor = self.scope.constants[value] if isinstance(value, Node) else torch.tensor(value)
        tensor = tensor.to(dtype or tensor.dtype)
        if tensor.ndim and isinstance(value, Node):
            name = self._labels.get(value, f"{self.scope.prefix}{value.name}")
        else:
            name = str(tensor.tolist())
        self.initializers[name] = tensor
        return name

    def sizes(self, node: Node) -> list[int]:
        """Return the shape of a node's value, -1 for the batch."""
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if sizes.count(-1) > 1:
            raise ExportError(f"{self.scope.prefix}{node.name} has two axes of unknown size")
        return sizes

    def shape(self, node: Node) -> str:
        """Return an ONNX tensor that holds the shape of a node's value."""
        sizes = self.sizes(node)
        if -1 not in sizes:
            return self.operand(sizes)
        i = sizes.index(-1)
        batch, image, axis = self._batch or (None, "", 0)
        if node.meta["val"].shape[i] != batch:
            raise ExportError(f"{self.scope.prefix}{node.name} is filled along a part of the batch")
        open_size = self.emit("Shape", image, name=f"{node.name}/batch", start=axis, end=axis + 1)
        parts = [self.operand(part) for part in (sizes[:i], sizes[i + 1 :]) if part]
        parts.insert(min(i, 1), open_size)
        return self.emit("Concat", *parts, name=f"{node.name}/shape", axis=0)

    def _note_batch(self, node: Node) -> None:
        for axis, size in enumerate(node.meta["val"].shape):
            if not isinstance(size, int) and self._batch is None:
                self._batch = (size, self.scope.names[node], axis)

    def _path(self, node: Node) -> str:
        path = f"{self.graph.path(node)}.".removeprefix(PREFIX)
        return f"{path[:-1]}/" if path.strip(".") else ""

    def _walk(self, nodes: Iterable[Node], prefix: Callable[[Node], str]) -> None:
        for node in nodes:
            is_operation = node.op == "call_function" and holds_tensors(node)
            if not is_operation or node in self.scope.constants:
                continue
            self.scope.prefix = prefix(node)
            if op_name(node) in REFERENCES:
                self.scope.names[node] = self._neuron(node)
            elif translation := OPERATORS.get(op_name(node)):
                self.scope.names[node] = translation(self, node, *node.args, **node.kwargs)
            else:
                where = self.scope.prefix.rstrip("/") or "the model"
                raise ExportError(
                    f"{where} holds the operator {op_name(node)}, which this export cannot write"
                )

    def _neuron(self, node: Node) -> tuple[str, ...]:
        """Write the steps of a neuron's reference loop."""
        body, outer = self._body(node), self.scope
        prefix = f"{outer.prefix}{node.name}/"
        inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
        outside = dict(zip(inputs, _tensors_of(node), strict=True))
        known = {i: outer.constants[o] for i, o in outside.items() if o in outer.constants}
        names = {i: outer.names[o] for i, o in outside.items() if o in outer.names}
        self.scope = Scope(prefix, constants(body.graph.nodes, known), names)
        self._walk(body.graph.nodes, lambda _: prefix)
        outputs = tuple(self.operand(output) for output in _outputs(body.graph.nodes))
        self.scope = outer
        self.neurons[node.name] = (self.operand(node.args[0]), outputs[0])
        return outputs

    def _body(self, node: Node) -> GraphModule:
        """Trace the reference loop of a neuron; equal neurons share it."""
        tensors = _tensors_of(node)
        values = [operand.meta["val"] for operand in tensors]
        key = str((op_name(node), map_arg(node.args, lambda operand: operand.meta["val"])))

        def loop(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(tensors, inputs, strict=True))
            spikes, v, *_ = REFERENCES[op_name(node)](*map_arg(node.args, given.__getitem__))
            return spikes, v

        if key not in self._bodies:
            with torch.no_grad():
                self._bodies[key] = make_fx(loop)(*values)
            self._bodies[key].graph.eliminate_dead_code()
        return self._bodies[key]


def to_onnx(
    graph: Graph, inputs: Sequence[str], outputs: Sequence[str], notes: Mapping[str, str]
) -> tuple[ModelProto, dict[str, tuple[str, str]]]:
    """Return the ONNX model of a captured graph, and `Writer.neurons`.

    Args:
        graph: Captured in float32.
        inputs: Names for its inputs.
        outputs: Names for its outputs.
        notes: What else a reader of the file must know.
    """
    writer = Writer(graph)
    results = writer.write(inputs)
    writer.scope.prefix = ""
    for name, result in zip(outputs, results, strict=True):
        writer.emit("Identity", result, name=name)
    nodes = _needed(writer.nodes, set(outputs))
    read = {name for node in nodes for name in node.input}
    onnx_graph = helper.make_graph(
        nodes,
        "spikeformers",
        [_value_info(name, node) for name, node in zip(inputs, image_nodes(graph), strict=True)],
        [_value_info(n, node) for n, node in zip(outputs, _outputs(graph.nodes), strict=True)],
        [
            numpy_helper.from_array(tensor.contiguous().numpy(), name)
            for name, tensor in writer.initializers.items()
            if name in read
        ],
    )
    model = helper.make_model(
        onnx_graph,
        producer_name="spikeformers",
        producer_version=spikeformers.__version__,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, dict(notes))
    return model, writer.neurons


def _needed(nodes: Iterable[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """Return the nodes that what is wanted depends on."""
    kept = []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _value_info(name: str, node: Node) -> ValueInfoProto:
    value = node.meta["val"]
    sizes = [size if isinstance(size, int) else "batch" for size in value.shape]
    return helper.make_tensor_value_info(name, TYPES[value.dtype], sizes)


def image_nodes(graph: Graph) -> list[Node]:
    """Return the nodes of what is given with every call."""
    return [node for node in graph.nodes if graph.inputs.get(node.name) == "image"]


def _outputs(nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that a graph returns, those of nested lists one after the other."""
    *_, last = nodes
    found: list[Node] = []
    map_arg(last.args, found.append)
    return found


def _tensors_of(node: Node) -> list[Node]:
    return [operand for operand in node.args if isinstance(operand, Node)]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
