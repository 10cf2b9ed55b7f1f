"""What a model does on a batch, counted: the rows of the audit while the folded graph runs.

| unit | one of them |
|---|---|
| AC | an addition: a spike, or one unit of an integer, reaches one output |
| MAC | a multiply-accumulate with an analog operand, zero or not, padding included |
| MACint | a product of two integers, neither of them zero |
| event | a non-zero input of a convolution |
| update | one neuron in one step |
| spike | a spike that a neuron emits; an integer is as many |
| shortcut | an elementwise addition of two maps |
| pool | a value that enters an average |
| mask | an element that a factor of 0 and 1 keeps or drops |

Additions are counted, not estimated from rates: a spike at a border or between strides reaches
fewer outputs, an integer adds as often as its value, and a product of two spike tensors adds where
both are non-zero. A MAC row counts like every FLOP counter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from spikeformers.analysis.alphabet import (
    AVERAGES,
    ELEMENTWISE,
    PRODUCTS,
    constant_factor,
    interpret,
)
from spikeformers.analysis.audit import judge
from spikeformers.analysis.capture import capture_inference, factors_of, op_name, short_name
from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS

__all__ = ["Counter", "Key"]

Key = tuple[str, str, str, str, str]
"""Path, operator, verdict, node and unit."""

JUDGED_PRODUCTS = {"encode", "AC", "ACx", "MACint", "MAC"}
"""Verdicts on what a network without spikes would multiply."""


class Counter:
    """Counts what the graph for one shape of batch does."""

    def __init__(self, model: nn.Module, example: Tensor, integers: str) -> None:
        self.steps, self.batch = example.shape[:2]
        self.graph = capture_inference(model, example)
        self.facts = interpret(self.graph)
        self.integers = integers
        verdicts = {row.node: row.verdict for row in judge(self.graph, self.facts)[0]}
        found = {node: verdicts.get(node.name) or self._kind(node) for node in self.graph.nodes}
        self.verdicts = {node: verdict for node, verdict in found.items() if verdict}
        emitted = [
            self.facts.of(n).alphabet for n, kind in self.verdicts.items() if kind == "neuron"
        ]
        self.levels = max((alphabet.high for alphabet in emitted if alphabet), default=1)
        self.fan_outs: dict[Node, Tensor] = {}
        self.uncounted = tuple(
            f"{self.graph.path(node) or '(model)'} ({short_name(node)}): {why}"
            for node, why in self._beyond_counting()
        )

    def _kind(self, node: Node) -> str | None:
        """Name what a node does that the audit has no row for."""
        op, signals = op_name(node), self._signals(node)
        if op in OUTPUT_ALPHABETS:
            return "neuron"
        if op == "aten::sum" and signals:
            return "sum"
        if op in AVERAGES and signals:
            return "pool"
        return "shortcut" if op in {"aten::add", "aten::sub"} and len(signals) == 2 else None

    def _signals(self, node: Node) -> list[Node]:
        return [n for n in factors_of(node) if not self.facts.is_constant(n)]

    def _beyond_counting(self) -> Iterable[tuple[Node, str]]:
        for node, verdict in self.verdicts.items():
            if node in self.facts.unknown:
                yield node, "an operator that the audit does not know"
            elif verdict in {"AC", "ACx", "sum"}:
                counted = node if self._is_factor(node) else self._signals(node)[0]
                alphabet = self.facts.of(counted).alphabet
                if alphabet and alphabet.scale is None and max(-alphabet.low, alphabet.high) > 1:
                    yield node, "integers in units that the network learned"

    def count(self, x: Tensor, is_once: bool) -> dict[Key, Tensor]:
        """Return how often each row was performed, `[T, B]` in float64."""
        values: dict[Node, Any] = {}
        counts: dict[Key, Tensor] = {}
        skipped = {node for node, _ in self._beyond_counting()}
        for node, value in self.graph.run(x):
            values[node] = value[0] if isinstance(value, tuple | list) else value
            verdict = self.verdicts.get(node)
            if verdict is None or node in skipped:
                continue
            for unit, amounts in self._amounts(node, verdict, values):
                n_TB = self._by_step_and_sample(node, amounts)
                if verdict == "encode" and is_once:
                    n_TB[1:] = 0
                key = (self.graph.path(node), short_name(node), verdict, node.name, unit)
                counts[key] = n_TB.cpu()
        return counts

    def twin(self) -> float:
        """Return the multiply-accumulates per sample of the same layers, dense and run once."""
        total = 0.0
        for node, verdict in self.verdicts.items():
            is_known = node not in self.facts.unknown and not self._is_factor(node)
            if verdict in JUDGED_PRODUCTS and is_known:
                tensors = (node, *node.all_input_nodes)
                dense = self._dense(node, {n: torch.ones(_shape(n)) for n in tensors})
                total += self._by_step_and_sample(node, dense)[0].mean().item()
        return total

    def _amounts(
        self, node: Node, verdict: str, values: dict[Node, Tensor]
    ) -> Iterable[tuple[str, Tensor]]:
        """Yield units, and tensors in the layout of the map whose sums are their numbers."""
        out = values[node]
        if verdict == "neuron":
            yield "update", torch.ones_like(out)
            yield "spike", self._units(node, out)
        elif verdict in {"shortcut", "mask"}:
            yield verdict, torch.ones_like(out)
        elif verdict == "pool":
            yield verdict, torch.ones_like(values[self._signals(node)[0]])
        elif verdict in {"encode", "MAC"} or (verdict == "ACx" and self.integers == "mac"):
            yield "MAC", self._dense(node, values)
        elif len(signals := self._signals(node)) == 2:
            is_there = {n: values[n].ne(0).float() for n in signals}
            yield "MACint" if verdict == "MACint" else "AC", _product(node, values, is_there)
        elif self._is_factor(node):
            yield "AC", self._units(node, out)
        else:
            (signal,) = signals
            units = self._units(signal, values[signal])
            yield "AC", units if verdict == "sum" else units * self._fan_out(node, values)
            if "conv" in op_name(node):
                yield "event", units.ne(0)

    def _units(self, node: Node, values: Tensor) -> Tensor:
        """Return the integers of a tensor, without sign; one for each value if it is analog."""
        alphabet = self.facts.of(node).alphabet
        if alphabet is None:
            return torch.ones_like(values, dtype=torch.float64)
        if alphabet.scale is None:
            return values.ne(0).double()
        return (values.double() / alphabet.scale).round().abs()

    def _is_factor(self, node: Node) -> bool:
        return constant_factor(node, self.facts) is not None

    def _fan_out(self, node: Node, values: dict[Node, Tensor]) -> Tensor:
        """Return how many outputs each value of the signal reaches; alike in all steps and samples.

        With ones for weights this is the gradient of the sum of the outputs.
        """
        if node not in self.fan_outs:
            (signal,) = self._signals(node)
            inputs = _ones(node, values)
            with torch.enable_grad():
                inputs[signal].requires_grad_()
                out = _product(node, values, inputs)
                (reached,) = torch.autograd.grad(out.sum(), inputs[signal])
            self.fan_outs[node] = reached[:1].double()
        return self.fan_outs[node]

    def _dense(self, node: Node, values: dict[Node, Tensor]) -> Tensor:
        """Return a tensor that sums to the multiply-accumulates of a dense operation."""
        out, (first, *others) = values[node], [values[n] for n in factors_of(node)]
        if "conv_transpose" in op_name(node):
            return _number(others[0][0].numel(), first)
        if "conv" in op_name(node):
            return _number(others[0][0].numel(), out)
        if op_name(node) in PRODUCTS.keys() - ELEMENTWISE.keys():
            return _product(node, values, _ones(node, values))
        return _number(1, out)

    def _by_step_and_sample(self, node: Node, amounts: Tensor) -> Tensor:
        """Sum what belongs to one step of one sample; what runs once belongs to the first step."""
        T, B, shape = self.steps, self.batch, tuple(amounts.shape)
        n_TB = torch.zeros(T, B, dtype=torch.float64, device=amounts.device)
        # A convolution has its steps and samples on one axis, and channels on the next.
        is_merged = "conv" in op_name(node)
        if (shape[:2] == (T, B) and not is_merged) or shape[:1] == (T * B,):
            leading = (T, B)
        elif shape[:1] == (B,) or shape[:2] == (1, B):
            leading = (1, B)
        elif B == 1:
            leading = (1, 1)
        else:
            path = self.graph.path(node) or "(model)"
            raise InputError(
                f"no axis of {list(shape)} in {path} is that of the {B} samples: give batches of 1"
            )
        n_TB[: leading[0]] = amounts.reshape(*leading, -1).sum(2, dtype=torch.float64)
        return n_TB


def _shape(node: Node) -> torch.Size:
    value = node.meta["val"]
    return value[0].shape if isinstance(value, tuple | list) else value.shape


def _number(n: int, like: Tensor) -> Tensor:
    return torch.full((), n, dtype=torch.float64, device=like.device).expand(like.shape)


def _ones(node: Node, values: dict[Node, Tensor]) -> dict[Node, Tensor]:
    # In float32 integers are exact up to 2^24, in the 16-bit types of a model only up to 2^8.
    return {n: torch.ones_like(values[n], dtype=torch.float32) for n in factors_of(node)}


def _product(node: Node, values: dict[Node, Tensor], factors: dict[Node, Tensor]) -> Tensor:
    """Compute a product with other factors, and without what it adds."""
    zeros = {n: torch.zeros_like(values[n], dtype=torch.float32) for n in node.all_input_nodes}
    inputs = zeros | factors
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: inputs[n])
    return node.target(*args, **kwargs)  # type: ignore[operator]
