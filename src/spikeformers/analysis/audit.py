"""Is a model spike-driven? `audit(model, example)` answers operation by operation.

| verdict | the operation | cost |
|---|---|---|
| encode | all ancestors are affine functions of the image | the sensor's side |
| AC | {0,1} or {-1,0,1} against weights or integers | one addition per spike |
| ACx | one integer operand against weights | as many additions as its value |
| MACint | integer times integer | integer multiplications |
| mask | a {0,1} or {-1,0,1} factor elementwise | keeps or drops |
| MAC | an analog value against anything else | multiplications |

Sums, maxima and reshapes multiply nothing and have no row. Neither has a constant factor, a mean
for instance, that merges exactly into something there already: the threshold of the neuron it feeds
(if that resets to 0 or by subtraction: `c x` reaches `v_threshold` when `x` reaches
`v_threshold / c`), or the weights before or behind it. The notes name each one. This is exact
arithmetic; in floating point it rounds unless the factor is a power of two.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from spikeformers.analysis.alphabet import (
    AVERAGES,
    ELEMENTWISE,
    KEEPING,
    MAXIMA,
    PRODUCTS,
    SUMS,
    Origin,
    Value,
    constant_factor,
    interpret,
)
from spikeformers.analysis.capture import Graph, capture, factors_of, op_name, short_name
from spikeformers.errors import InputError
from spikeformers.layers import fold
from spikeformers.neurons import AcrossBatch
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.types import ANALOG, Alphabet

__all__ = ["Report", "Row", "audit"]

WEIGHTS = Value(Origin.CONSTANT)
# What commutes with a positive factor: f(c x) = c f(x).
HOMOGENEOUS = {*KEEPING, *MAXIMA, *AVERAGES, "aten::sum", "aten::neg"}


@dataclass(frozen=True)
class Row:
    """One operation that carries multiplications.

    Attributes:
        path: Module path in the model's own names.
        op: The operator's name.
        operands: The alphabets that meet.
        verdict: "encode", "AC", "ACx", "MACint", "mask" or "MAC".
        reason: Why.
        node: Name of the node in the captured graph.
    """

    path: str
    op: str
    operands: tuple[str, ...]
    verdict: str
    reason: str
    node: str


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes:
        rows: The operations that carry multiplications, in the order in which they run.
        neurons: How often neurons are called.
        unknown: Operators that the audit does not know; it takes their results for analog.
        notes: What else a reader must know: merged factors, neurons across the batch.
    """

    rows: tuple[Row, ...]
    neurons: int
    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return "strictly spike-driven", "spike-driven" or "not spike-driven"."""
        found = {row.verdict for row in self.rows}
        if not self.neurons or found & {"MAC", "MACint"}:
            return "not spike-driven"
        return "spike-driven" if "ACx" in found else "strictly spike-driven"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {"verdict": self.verdict, **asdict(self)}

    def __str__(self) -> str:
        """Write a table, then unknown operators and notes, then the verdict."""
        table = [("path", "op", "operands", "verdict", "reason")] + [
            (row.path or "(model)", row.op, " x ".join(row.operands), row.verdict, row.reason)
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in table
        ]
        lines += [f"unknown operator: {name}" for name in self.unknown]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def audit(model: nn.Module, example: Tensor, *, image: Alphabet | None = ANALOG) -> Report:
    """Judge every multiplication of a model in its inference form.

    The model itself is left alone: a folded eval copy is captured. `model.readout` is no part of
    it. A constant factor behind a linear map, such as the average of two heads' scores, merges into
    the map's weights.

    Args:
        model: Any module that takes one tensor; in any mode.
        example: An input of the shape to capture, `[T, B, C, H, W]`; small is enough.
        image: The values that every input holds: `BINARY` for events that are there or not, an
            `Alphabet` for their counts. Such an input needs no encoding.

    Raises:
        InputError: If the model cannot be exported, or if `example` holds other values.
    """
    if image is not None and not _holds(image, example):
        raise InputError(f"the example holds values outside {image}, which every input shall hold")
    reader = _Reader(capture(fold(copy.deepcopy(model).eval()), example), image)
    facts = reader.facts
    rows = tuple(row for node in facts.values if (row := reader.row(node)))
    across = [
        f"{path} integrates across the batch as if it were time: samples influence each other"
        for path, module in model.named_modules()
        if isinstance(module, AcrossBatch)
    ]
    return Report(
        rows=rows,
        neurons=sum(map(_is_neuron, facts.values)),
        unknown=tuple(sorted({op_name(node) for node in facts.unknown})),
        notes=(*reader.merged, *across),
    )


def _holds(alphabet: Alphabet, tensor: Tensor) -> bool:
    """Whether all values are integers of an alphabet, times its scale."""
    steps = tensor / (alphabet.scale or 1.0)
    return bool(
        ((steps == steps.round()) & (steps >= alphabet.low) & (steps <= alphabet.high)).all()
    )


def _is_neuron(node: Node) -> bool:
    return op_name(node) in OUTPUT_ALPHABETS


def _joined(found: list[list[str] | None]) -> list[str] | None:
    """Return all places, or `None` if one is missing."""
    return None if None in found else [place for places in found for place in places or []]


def _is_small(alphabet: Alphabet | None) -> bool:
    return alphabet is not None and -1 <= alphabet.low <= alphabet.high <= 1


def _judge(op: str, a: Value, b: Value) -> tuple[str, str]:
    """Return verdict and reason of a product; constants come second, analog reasons come later."""
    is_small = _is_small(a.alphabet) or _is_small(b.alphabet)
    if b.origin is Origin.CONSTANT:
        is_small = _is_small(a.alphabet)
        if a.origin is Origin.IMAGE:
            return "encode", "affine in the image"
    elif op == "aten::div":
        return "MAC", "a division by a signal"
    if op in ELEMENTWISE and is_small:
        return "mask", "a factor of 0 and 1 (or a sign) keeps or drops"
    if a.alphabet is None or (b.alphabet is None and b.origin is not Origin.CONSTANT):
        return "MAC", ""
    if b.origin is not Origin.CONSTANT:
        integers = ("MACint", "both operands are integers")
        return ("AC", "spikes select the integers to add") if is_small else integers
    most = max(-a.alphabet.low, a.alphabet.high)
    sign = "signed " if a.alphabet.low < 0 else ""
    if is_small:
        return "AC", f"one {sign}addition per spike"
    return "ACx", f"up to {most} {sign}additions per value"


class _Reader:
    """Reads the rows off one graph, and remembers which factors merge into what."""

    def __init__(self, graph: Graph, image: Alphabet | None) -> None:
        self.graph = graph
        self.facts = interpret(graph, image)
        self.merged: list[str] = []

    def row(self, node: Node) -> Row | None:
        """Return the row of a node; `None` if it multiplies nothing that stays."""
        op, value = op_name(node), self.facts.values[node]
        if node in self.facts.unknown:
            operands = [self.value(operand) for operand in node.all_input_nodes]
            return self._row(node, operands, "MAC", "unknown operator: taken for a multiplication")
        if isinstance(value, tuple) or value.origin is Origin.CONSTANT:
            return None
        if (factor := constant_factor(node, self.facts)) is not None:
            return self._factor_row(node, factor)
        if op not in PRODUCTS:
            return None
        # A norm without gain has no second tensor; its statistics are the weights.
        inputs = [*factors_of(node), None][:2]
        a, b = (self.value(operand) for operand in inputs)
        if a.origin is b.origin is Origin.CONSTANT:
            return None
        if a.origin is Origin.CONSTANT and op != "aten::div":
            a, b, inputs = b, a, inputs[::-1]
        verdict, reason = _judge(op, a, b)
        return self._row(node, [a, b], verdict, reason or self._why_analog(inputs))

    def value(self, node: Node | None) -> Value:
        """Return what is known about an operand."""
        value = WEIGHTS if node is None else self.facts.values.get(node, WEIGHTS)
        return value if isinstance(value, Value) else Value(Origin.SIGNAL)

    def _row(self, node: Node, operands: list[Any], verdict: str, reason: str) -> Row:
        path, op = self.graph.path(node), short_name(node)
        return Row(path, op, tuple(map(str, operands)), verdict, reason, node.name)

    def _factor_row(self, node: Node, factor: float) -> Row | None:
        """Return the row of a product with a known number, unless it merges into something."""
        if abs(factor) in (0, 1):
            return None
        (operand,) = [n for n in node.all_input_nodes if not self._is_constant(n)]
        places = self._behind(node) if factor > 0 else None
        places = self._before(operand, node) if places is None else places
        if places is not None:
            goal = " and ".join(dict.fromkeys(places)) or "nothing, for nobody reads it"
            what = f"the factor {factor:g} of {short_name(node)}"
            self.merged.append(f"{self.graph.path(node) or '(model)'}: {what} merges into {goal}")
            return None
        # The alphabet behind the node holds the integers that the number multiplies.
        verdict, reason = _judge(op_name(node), self.value(node), WEIGHTS)
        reason = reason or "this factor merges neither into weights nor into a threshold"
        return self._row(node, [self.value(operand), f"{factor:g}"], verdict, reason)

    def _is_constant(self, node: Node) -> bool:
        return self.value(node).origin is Origin.CONSTANT

    def _behind(self, node: Node) -> list[str] | None:
        """Name what absorbs a positive factor of `node` behind it; `None` if a reader cannot."""
        return _joined([self._absorbed_by(user, node) for user in node.users])

    def _absorbed_by(self, user: Node, node: Node) -> list[str] | None:
        op, path = op_name(user), self.graph.path(user)
        if _is_neuron(user):
            if not _scales_with_threshold(user, node):
                return None
            # A spike as high as its threshold hands the factor on.
            value = self.facts.values[user]
            spikes = (value[0] if isinstance(value, tuple) else value).alphabet
            is_high = spikes is not None and spikes.scale is None
            return _joined([[f"the threshold of {path}"], self._behind(user) if is_high else []])
        if op in PRODUCTS and self._is_synapse(user):
            return [f"the weights of {path}"]
        # An alphabet carries the factor on as its scale.
        is_tracked = self.value(user).alphabet is not None
        if is_tracked or op in HOMOGENEOUS or constant_factor(user, self.facts) is not None:
            return self._behind(user)
        return None

    def _before(self, node: Node, reader: Node) -> list[str] | None:
        """Name the linear maps that absorb a factor of `node`, if only `reader` reads it."""
        if self._is_constant(node):
            return []
        if set(node.users) != {reader}:
            return None
        op = op_name(node)
        if op in PRODUCTS and self._is_synapse(node):
            return [f"the weights of {self.graph.path(node)}"]
        if op not in HOMOGENEOUS - MAXIMA.keys() and op not in SUMS:
            return None
        return _joined([self._before(operand, node) for operand in node.all_input_nodes])

    def _is_synapse(self, node: Node) -> bool:
        """Whether a product has weights on one side, so that they can take a factor."""
        signals = [operand for operand in node.all_input_nodes if not self._is_constant(operand)]
        is_product = len(signals) == 1 and factors_of(node).count(signals[0]) == 1
        return is_product and constant_factor(node, self.facts) is None

    def _why_analog(self, operands: list[Node | None]) -> str:
        """Walk back from an analog operand to the node where analog values come from."""
        analog = [n for n in operands if n is not None and self._is_analog(n)]
        while analog:
            # Of a sum, the last operand: the branch rather than the trunk.
            node = analog[-1]
            op, path = op_name(node), self.graph.path(node) or "(model)"
            if node.op == "placeholder":
                return "no neuron stands between the image and it"
            if _is_neuron(node):
                return f"it reads the membrane of {path}"
            multiplies = op in PRODUCTS and constant_factor(node, self.facts) is None
            if multiplies or node in self.facts.unknown:
                return f"no neuron stands between {path} ({short_name(node)}) and it"
            analog = [n for n in node.all_input_nodes if self._is_analog(n)]
        return f"different scales meet at {path} ({short_name(node)})"

    def _is_analog(self, node: Node) -> bool:
        value = self.value(node)
        return value.origin is not Origin.CONSTANT and value.alphabet is None


def _scales_with_threshold(neuron: Node, current: Node) -> bool:
    """Whether a factor of the current is the same as a divisor of the threshold: `c h` for `h`."""
    names = [argument.name for argument in neuron.target._schema.arguments]  # type: ignore[union-attr]
    arguments = {**dict(zip(names, neuron.args, strict=False)), **neuron.kwargs}
    is_at_rest_0 = arguments.get("v0") is None and arguments.get("v_reset") in (0.0, None)
    reads_spikes_only = all(user.args[1:] in ((), (0,)) for user in neuron.users)
    has_threshold = "v_threshold" in arguments
    return arguments["x"] is current and has_threshold and is_at_rest_0 and reads_spikes_only
