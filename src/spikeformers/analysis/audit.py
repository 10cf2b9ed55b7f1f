"""Is a model spike-driven? `audit(model, example)` answers operation by operation.

| verdict | the operation | cost |
|---|---|---|
| encode | all ancestors are affine functions of the image | the sensor's side |
| AC | {0,1} or {-1,0,1} against weights or integers | one addition per spike |
| ACx | one integer operand against weights | as many additions as its value |
| MACint | integer times integer | integer multiplications |
| mask | a {0,1} or {-1,0,1} factor elementwise | keeps or drops |
| MAC | an analog value against anything else | multiplications |

Sums, maxima and reshapes multiply nothing and have no row. Neither has a constant factor or a norm
that merges exactly into weights or thresholds there already; `merging.py` says which ones do, and
the notes name each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from spikeformers.analysis.alphabet import (
    ELEMENTWISE,
    NORMS,
    PRODUCTS,
    Facts,
    Origin,
    Value,
    constant_factor,
    interpret,
)
from spikeformers.analysis.capture import Graph, capture_inference, factors_of, op_name, short_name
from spikeformers.analysis.merging import Merging
from spikeformers.analysis.observe import Observed, observe, stray
from spikeformers.errors import InputError
from spikeformers.neurons import AcrossBatch
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.types import ANALOG, Alphabet

__all__ = ["Report", "Row", "audit", "judge"]

WEIGHTS = Value(Origin.CONSTANT)


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
        observed: How much data kept the claims, if the audit was given some.
    """

    rows: tuple[Row, ...]
    neurons: int
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    observed: Observed | None = None

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
        if self.observed is not None:
            lines += [f"observed: {self.observed}"]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def audit(
    model: nn.Module,
    example: Tensor,
    *,
    image: Alphabet | None = ANALOG,
    verify: Tensor | Iterable[Tensor] | None = None,
) -> Report:
    """Judge every multiplication of a model in its inference form.

    The model itself is left alone: a folded eval copy is captured. `model.readout` is no part of
    it. A constant factor behind a linear map, such as the average of two heads' scores, merges into
    the map's weights.

    Args:
        model: Any module that takes one tensor; in any mode.
        example: An input of the shape to capture, `[T, B, C, H, W]`; small is enough.
        image: The values that every input holds: `BINARY` for events that are there or not, an
            `Alphabet` for their counts. Such an input needs no encoding.
        verify: Data to compare the claims with, `[T, n B, C, H, W]` or several such: the captured
            graph runs on it, and every value of every operation must lie in its alphabet.

    Raises:
        InputError: If the model cannot be exported, or if `example` holds other values.
        ClaimError: If a value of the data contradicts a claim; path and value are named.
    """
    if image is not None and (value := stray(image, example)) is not None:
        raise InputError(
            f"the example holds {value:g}, outside {image}, which every input shall hold"
        )
    graph = capture_inference(model, example)
    facts = interpret(graph, image)
    rows, merged = judge(graph, facts)
    across = [
        f"{path} integrates across the batch as if it were time: samples influence each other"
        for path, module in model.named_modules()
        if isinstance(module, AcrossBatch)
    ]
    return Report(
        rows=rows,
        neurons=sum(map(_is_neuron, facts.values)),
        unknown=tuple(sorted({op_name(node) for node in facts.unknown})),
        notes=(*merged, *across),
        observed=None if verify is None else observe(graph, facts, verify, example.shape),
    )


def judge(graph: Graph, facts: Facts) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Return the rows of a graph, and a note for each factor that merges."""
    reader = _Reader(graph, facts)
    rows = tuple(row for node in facts.values if (row := reader.row(node)))
    return rows, tuple(reader.merged)


def _is_neuron(node: Node) -> bool:
    return op_name(node) in OUTPUT_ALPHABETS


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

    def __init__(self, graph: Graph, facts: Facts) -> None:
        self.graph = graph
        self.facts = facts
        self.merging = Merging(graph, facts)
        self.merged: list[str] = []

    def row(self, node: Node) -> Row | None:
        """Return the row of a node; `None` if it multiplies nothing that stays."""
        op, value = op_name(node), self.facts.values[node]
        if node in self.facts.unknown:
            operands = [self._value(operand) for operand in node.all_input_nodes]
            return self._row(node, operands, "MAC", "unknown operator: taken for a multiplication")
        if isinstance(value, tuple) or value.origin is Origin.CONSTANT:
            return None
        if (factor := constant_factor(node, self.facts)) is not None:
            return self._factor_row(node, factor)
        if op not in PRODUCTS or (op in NORMS and self._merges(node, "the norm")):
            return None
        # A norm without gain has no second tensor; its statistics are the weights.
        inputs = [*factors_of(node), None][:2]
        a, b = (self._value(operand) for operand in inputs)
        if a.origin is b.origin is Origin.CONSTANT:
            return None
        if a.origin is Origin.CONSTANT and op != "aten::div":
            a, b, inputs = b, a, inputs[::-1]
        verdict, reason = _judge(op, a, b)
        return self._row(node, [a, b], verdict, reason or self._why_analog(inputs))

    def _value(self, node: Node | None) -> Value:
        return WEIGHTS if node is None else self.facts.of(node)

    def _row(self, node: Node, operands: list[Any], verdict: str, reason: str) -> Row:
        path, op = self.graph.path(node), short_name(node)
        return Row(path, op, tuple(map(str, operands)), verdict, reason, node.name)

    def _factor_row(self, node: Node, factor: float) -> Row | None:
        """Return the row of a product with a known number, unless it merges into something."""
        what = f"the factor {factor:g} of {short_name(node)}"
        if abs(factor) in (0, 1) or self._merges(node, what, factor):
            return None
        # The alphabet behind the node holds the integers that the number multiplies.
        verdict, reason = _judge(op_name(node), self._value(node), WEIGHTS)
        reason = reason or "this factor merges neither into weights nor into a threshold"
        (operand,) = [n for n in node.all_input_nodes if not self.facts.is_constant(n)]
        return self._row(node, [self._value(operand), f"{factor:g}"], verdict, reason)

    def _merges(self, node: Node, what: str, factor: float | None = None) -> bool:
        """Whether something absorbs a factor, or a norm; if so, note it."""
        merging = self.merging
        places = merging.of_norm(node) if factor is None else merging.of_factor(node, factor)
        if places is None:
            return False
        goal = " and ".join(dict.fromkeys(places)) or "nothing, for nobody reads it"
        self.merged.append(f"{self.graph.path(node) or '(model)'}: {what} merges into {goal}")
        return True

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
        """Whether values of a node are analog; of a neuron, its membranes are."""
        several = isinstance(self.facts.values.get(node), tuple)
        return several or (
            not self.facts.is_constant(node) and self.facts.of(node).alphabet is None
        )
