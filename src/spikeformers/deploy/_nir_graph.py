"""From a captured graph to NIR nodes, and to the list of what NIR cannot express.

NIR describes one sample over continuous time, so time and batch disappear. A neuron with step `dt`:

    tau dv/dt = v_leak - v + r I, fires at v > v_threshold, then v = v_reset

One Euler step of it is ours, with v_leak = v_reset = our rest, and

    decay_input=True     tau = dt / (1 - decay)    r = 1
    decay_input=False    tau = dt / (1 - decay)    r = 1 / (1 - decay)
    IF                                             r = 1 / dt

Ours fires at `h >= v_threshold` unless it is strict: the largest number below the threshold says
the same to a reader that asks for `v > v_threshold`. Sums are edges that meet in one node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from spikeformers.analysis.capture import Graph, op_name
from spikeformers.deploy._constants import constants, holds_tensors, parameters
from spikeformers.errors import ExportError, MissingExtraError

try:
    import nir
except ImportError as error:
    raise MissingExtraError("nir", "export") from error

TIMESTEPS, BATCH = 2, 3
"""What is captured; different, so that a shape tells whether time and batch are one axis or two."""

VIEWS = {
    f"aten::{name}"
    for name in ("clone", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view")
}

ARRANGING = {*VIEWS, "getitem", "aten::permute", "aten::transpose"}
"""What only hands values on, so that its place between islands needs no reason of its own."""

WHY_NOT = {
    "aten::cat": "lays signals side by side",
    "aten::matmul": "multiplies two signals",
    "aten::max_pool2d": "takes a maximum",
    "aten::mul": "multiplies two signals",
    "aten::split": "takes a signal apart",
    "spikeformers::dsr": "fires spikes as high as a learned threshold",
    "spikeformers::ilif": "emits integers",
    "spikeformers::ilif_burst": "waits for a whole window of steps",
}


class InexpressibleError(ExportError):
    """NIR has no node for an operation."""


@dataclass(frozen=True)
class Signal:
    """What flows along edges: the sum of what some NIR nodes emit.

    Attributes:
        sources: Their names.
        shape: Of one sample at one moment.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]


class Builder:
    """Turns the operations of a captured graph into NIR nodes, one after the other.

    Attributes:
        nodes: Name -> NIR node.
        inputs: Name -> shape of what comes from outside: the image, and results of refused nodes.
        shapes: Name -> shape of what a NIR node or an input emits.
        edges: From name to name.
        signals: What is known of a node of the captured graph.
        refused: What NIR cannot express, in order, and why, naming the layer.
        constants: Values of the nodes that depend on no input.
    """

    def __init__(self, graph: Graph, dt: float) -> None:
        self.graph = graph
        self.dt = dt
        self.nodes: dict[str, nir.NIRNode] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.edges: list[tuple[str, str]] = []
        self.signals: dict[Node, Signal] = {}
        self.refused: dict[Node, str] = {}
        self.constants = constants(graph.nodes, parameters(graph))
        self.taken = {node.name for node in graph.nodes}
        self._build()

    def _build(self) -> None:
        for node in self.graph.nodes:
            is_operation = node.op == "call_function" and holds_tensors(node)
            if not is_operation or node in self.constants:
                continue
            try:
                self.signals[node] = self._translate(node)
            except InexpressibleError as error:
                where = self.graph.path(node) or "the model"
                self.refused[node] = f"{where} {error}, which NIR cannot express"

    def _translate(self, node: Node) -> Signal:
        op = op_name(node)
        follows = op in ARRANGING and node.all_input_nodes[0] in self.refused
        if follows or op not in TRANSLATIONS:
            raise InexpressibleError(WHY_NOT.get(op, f"runs {op}"))
        return TRANSLATIONS[op](self, node, *node.args, **node.kwargs)

    def reasons(self) -> list[str]:
        """Say what NIR cannot express, each layer and reason once."""
        own = [why for node, why in self.refused.items() if op_name(node) not in ARRANGING]
        return list(dict.fromkeys(own or self.refused.values()))

    def signal(self, node: Node) -> Signal:
        """Return what a node of the captured graph stands for; from outside it is an input."""
        if node not in self.signals:
            shape = self.shape_of(node)
            self.inputs[node.name] = self.shapes[node.name] = shape
            self.signals[node] = Signal((node.name,), shape)
        return self.signals[node]

    def shape_of(self, node: Node) -> tuple[int, ...]:
        """Return the shape of a value for one sample at one moment."""
        shape = tuple(node.meta["val"].shape)
        if shape[:2] == (TIMESTEPS, BATCH):
            return shape[2:]
        if shape[:1] == (TIMESTEPS * BATCH,):
            return shape[1:]
        raise InexpressibleError("mixes time steps or samples")

    def place(
        self, node: Node, make: nir.NIRNode, signal: Signal, shape: Sequence[int], part: str = ""
    ) -> Signal:
        """Add a NIR node that reads a signal, and return what it emits."""
        path = (self.graph.path(node) or "model") + part
        names = itertools.chain([path], (f"{path}.{i}" for i in itertools.count(1)))
        name = next(name for name in names if name not in self.taken)
        self.taken.add(name)
        self.nodes[name], self.shapes[name] = make, tuple(shape)
        self.edges += [(source, name) for source in signal.sources]
        return Signal((name,), tuple(shape))

    def constant(self, value: Any) -> np.ndarray:
        """Return a constant operand."""
        held = self.constants[value] if isinstance(value, Node) else torch.as_tensor(value)
        return held.numpy()

    def is_constant(self, value: Any) -> bool:
        """Whether an operand is a number or depends on no input."""
        return not isinstance(value, Node) or value in self.constants


Translation = Callable[..., Signal]
TRANSLATIONS: dict[str, Translation] = {}
"""PyTorch's name -> what makes NIR nodes of it."""


def expresses(*names: str) -> Callable[[Translation], Translation]:
    """Enter a translation into the table."""

    def enter(translation: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(names, translation))
        return translation

    return enter


@expresses(*VIEWS)
def _view(build: Builder, node: Node, x: Node, *_: Any, **__: Any) -> Signal:
    build.shape_of(node)
    return build.signal(x)


@expresses("getitem")
def _getitem(build: Builder, node: Node, neuron: Node, i: int) -> Signal:
    del node
    if i:
        raise InexpressibleError("reads a membrane")
    return build.signal(neuron)


@expresses("aten::add")
def _add(build: Builder, node: Node, a: Any, b: Any, alpha: float = 1) -> Signal:
    if alpha != 1 or build.is_constant(a) or build.is_constant(b):
        raise InexpressibleError("adds a constant")
    left, right = build.signal(a), build.signal(b)
    if left.shape != right.shape or build.shape_of(a) != build.shape_of(b):
        raise InexpressibleError("adds signals of different shapes")
    if set(left.sources) & set(right.sources):
        raise InexpressibleError("adds a signal to itself")
    del node
    return Signal(left.sources + right.sources, left.shape)


@expresses("aten::mul", "aten::div")
def _scale(build: Builder, node: Node, a: Any, b: Any) -> Signal:
    if build.is_constant(a) and op_name(node) == "aten::mul":
        a, b = b, a
    if not build.is_constant(b):
        raise InexpressibleError(WHY_NOT.get(op_name(node), "divides by a signal"))
    signal, factor = build.signal(a), build.constant(b)
    factor = 1 / factor if op_name(node) == "aten::div" else factor
    if build.shape_of(node) != build.shape_of(a) or factor.ndim > len(build.shape_of(a)):
        raise InexpressibleError("multiplies by a factor of another shape")
    scale = np.broadcast_to(factor, build.shape_of(a)).reshape(signal.shape)
    return build.place(node, nir.Scale(np.array(scale, np.float32)), signal, signal.shape)


@expresses("aten::conv1d", "aten::conv2d")
def _conv(
    build: Builder,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Signal:
    kernel = build.constant(weight)
    shape: tuple[int, ...]
    if op_name(node) == "aten::conv1d":
        # A linear map over channels, the same at every position: its tokens are still a map.
        signal = build.signal(_map_behind(build, x))
        if kernel.shape[2] != 1 or len(signal.shape) != 3 or signal.shape[0] != kernel.shape[1]:
            raise InexpressibleError("convolves what is no map")
        kernel, shape = kernel[..., None], (kernel.shape[0], signal.shape[1], signal.shape[2])
        stride, padding, dilation = (1, 1), (0, 0), (1, 1)
    else:
        signal, shape = build.signal(x), build.shape_of(node)
        if signal.shape != build.shape_of(x):
            raise InexpressibleError("convolves channels in another order")
    kernel = _ungrouped(kernel, groups)
    offset = np.zeros(len(kernel), kernel.dtype) if bias is None else build.constant(bias)
    conv = nir.Conv2d(
        signal.shape[1:], kernel, tuple(stride), tuple(padding), tuple(dilation), 1, offset
    )
    return build.place(node, conv, signal, shape)


def _map_behind(build: Builder, x: Node) -> Node:
    """Return the map `[C, H, W]` from outside whose tokens `[C, N]` a node shows, or the node."""
    found = behind = x
    while op_name(behind) in VIEWS and behind in build.refused:
        behind = behind.all_input_nodes[0]
        shape = build.shape_of(behind)
        if len(shape) == 3 and shape[0] == build.shape_of(x)[0]:
            found = behind
    return found


def _ungrouped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Write a grouped kernel with its zeros: NIR cannot read groups back (version 1.0.8)."""
    outputs, inputs, *sides = kernel.shape
    full = np.zeros((outputs, inputs * groups, *sides), kernel.dtype)
    each = outputs // groups
    for g in range(groups):
        rows = slice(g * each, (g + 1) * each)
        full[rows, g * inputs : (g + 1) * inputs] = kernel[rows]
    return full


@expresses("aten::linear")
def _linear(build: Builder, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Signal:
    matrix, signal = build.constant(weight), build.signal(x)
    if len(build.shape_of(x)) != 1:
        raise InexpressibleError("maps one of several axes")
    if len(signal.shape) > 1:
        flatten = nir.Flatten({"input": np.array(signal.shape)}, start_dim=0, end_dim=-1)
        signal = build.place(node, flatten, signal, build.shape_of(x), ".flatten")
    make = nir.Linear(matrix) if bias is None else nir.Affine(matrix, build.constant(bias))
    return build.place(node, make, signal, (len(matrix),))


@expresses("aten::avg_pool2d")
def _avg_pool(
    build: Builder,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil: bool = False,
    counts_padding: bool = True,
) -> Signal:
    signal = build.signal(x)
    if ceil or (any(padding) and not counts_padding) or signal.shape != build.shape_of(x):
        raise InexpressibleError("averages over windows of different sizes")
    pool = nir.AvgPool2d(*(np.array(v) for v in (kernel, stride or kernel, padding)))
    return build.place(node, pool, signal, build.shape_of(node))


@expresses("aten::mean", "aten::sum")
def _over_map(build: Builder, node: Node, x: Node, axes: Any = None, *_: Any, **__: Any) -> Signal:
    signal, ndim = build.signal(x), x.meta["val"].ndim
    is_map = len(signal.shape) == 3 and signal.shape == build.shape_of(x)
    if not is_map or axes is None or {axis % ndim for axis in axes} != {ndim - 2, ndim - 1}:
        raise InexpressibleError("sums over something else than a map")
    kind = nir.AvgPool2d if op_name(node) == "aten::mean" else nir.SumPool2d
    sides = np.array(signal.shape[1:])
    pool = kind(kernel_size=sides, stride=sides, padding=np.array((0, 0)))
    return build.place(node, pool, signal, (signal.shape[0], 1, 1))


@expresses("spikeformers::lif")
def _lif(
    build: Builder,
    node: Node,
    x: Node,
    v0: Node | None,
    decay: Node,
    v_threshold: Node,
    v_reset: float | None,
    decay_input: bool,
    *rest: Any,
) -> Signal:
    if v0 is not None or v_reset is None:
        raise InexpressibleError("resets by subtraction" if v0 is None else "starts from a state")
    if not (build.is_constant(decay) and build.is_constant(v_threshold)):
        raise InexpressibleError("has a decay or a threshold that depends on the input")
    signal, shape = build.signal(x), build.shape_of(x)

    def everywhere(value: Any) -> np.ndarray:
        """One value per neuron; a `[C]` parameter lies along the first axis."""
        value = np.asarray(value)
        value = value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim else value
        return np.array(np.broadcast_to(value, shape)).reshape(signal.shape)

    threshold, strict = build.constant(v_threshold), rest[-1]
    if not strict:
        threshold = np.nextafter(threshold, threshold.dtype.type(-np.inf))
    fires = dict(v_threshold=everywhere(threshold), v_reset=everywhere(float(v_reset)))
    share = 1 - build.constant(decay).astype(np.float64)
    if (share > 0).all():
        r = np.ones_like(share) if decay_input else 1 / share
        leak = dict(tau=everywhere(build.dt / share), v_leak=everywhere(float(v_reset)))
        return build.place(node, nir.LIF(r=everywhere(r), **leak, **fires), signal, signal.shape)
    if decay_input or (share > 0).any():
        raise InexpressibleError("has a decay of 1, with which no current arrives")
    r = everywhere(1 / build.dt)
    return build.place(node, nir.IF(r=r, **fires), signal, signal.shape)
