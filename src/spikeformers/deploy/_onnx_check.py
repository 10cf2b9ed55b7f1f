"""Does the ONNX file compute what the model does? Asked of onnxruntime, layer by layer.

Rounding can carry a membrane across a threshold, and one spike more changes everything behind it.
So every layer is shown the same spikes: behind each current the captured graph goes on with the one
that onnxruntime found. Currents and outputs must then agree to a tolerance, and each neuron, given
the same current, must fire exactly the same spikes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from spikeformers.analysis.capture import Graph
from spikeformers.errors import ExportError, MissingExtraError

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError("onnxruntime", "export") from error

from onnx import ModelProto, ValueInfoProto

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Agreement:
    """How far onnxruntime and the model are apart; differences are relative to values above 1.

    Attributes:
        layers: Largest difference of a current or an output, when all layers see the same spikes.
        end_to_end: Largest difference of an output, when each goes its own way.
        neurons: Layers of neurons, all of which fired the same spikes on the same current.
    """

    layers: float
    end_to_end: float
    neurons: int


def check(
    file: ModelProto,
    graph: Graph,
    inputs: Mapping[str, Tensor],
    neurons: Mapping[str, tuple[str, str]],
) -> Agreement:
    """Compare a file with the graph that it was written from.

    Args:
        file: What was written.
        graph: What it was written from.
        inputs: The file's inputs by name, in order.
        neurons: Name of a neuron's node -> the ONNX tensors of its current and its spikes.

    Raises:
        ExportError: If a layer differs by more than 1e-5, or a spike does.
    """
    outputs = [output.name for output in file.graph.output]
    inner = {name for pair in neurons.values() for name in pair} - set(inputs)
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    found = {**feeds, **_run(_with_outputs(file, sorted(inner)), feeds)}
    forced = _Forced(graph, {n: (found[a], found[b]) for n, (a, b) in neurons.items()})
    ours = forced.run(*graph.arguments(*inputs.values()))
    for name, value in zip(outputs, _flat(ours), strict=True):
        forced.compare(name, value, found[name])
    alone = _run(file, feeds)
    module = graph.program.module(check_guards=False)
    with torch.no_grad():
        ours = _flat(module(*inputs.values()))
    apart = [_difference(value, alone[name]) for name, value in zip(outputs, ours, strict=True)]
    return Agreement(forced.worst, max(apart), len(neurons))


class _Forced(Interpreter):
    """Runs a captured graph on the currents that another program found.

    Args:
        graph: The captured graph.
        found: Name of a neuron's node -> the current and the spikes that the other found.
    """

    def __init__(self, graph: Graph, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__(graph.program.graph_module)
        self.captured = graph
        self.found = found
        self.worst = 0.0

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        """Run a node; compare what drives a neuron, put the other's in its place, and compare."""
        if n.name not in self.found:
            return super().run_node(n)
        (driver, *_), (current, spikes) = n.all_input_nodes, self.found[n.name]
        path = self.captured.path(n)
        self.compare(f"the current of {path}", self.env[driver], current)
        self.env[driver] = torch.from_numpy(current)
        result = super().run_node(n)
        if wrong := int((result[0].numpy() != spikes).sum()):
            raise ExportError(f"{path} fires {wrong} other spikes in onnxruntime than here")
        return result

    def compare(self, name: str, ours: Tensor, theirs: np.ndarray) -> None:
        """Note a difference and raise if it is too large."""
        apart = _difference(ours, theirs)
        if not apart <= TOLERANCE:
            raise ExportError(
                f"{name} differs by {apart:.1e} in onnxruntime, expected at most {TOLERANCE:.0e}"
            )
        self.worst = max(self.worst, apart)


def _difference(ours: Tensor, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value if that is above 1."""
    if not ours.numel():
        return 0.0
    apart = np.abs(ours.numpy() - theirs).max()
    return float(apart / max(1.0, np.abs(ours.numpy()).max()))


def _run(file: ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _with_outputs(file: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy of which further tensors can be seen."""
    seen = ModelProto()
    seen.CopyFrom(file)
    seen.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return seen


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in _flat(part)]
