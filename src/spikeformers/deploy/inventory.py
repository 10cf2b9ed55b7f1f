"""What a chip has to do for a model: every operation of the folded graph, in a chip's words.

| operator | what it is |
|---|---|
| encode | affine in the image: the sensor's side |
| synapse | spikes meet weights: one addition per spike and connection |
| integer synapse | integers meet weights: as many additions as the value |
| spike product | spikes select spikes or integers to add: attention |
| integer product | integer times integer |
| mask | a factor of 0 and 1 |
| multiply | real values meet anything |
| spike shortcut, membrane shortcut | two maps are added: of integers, of real values |
| sum, average, maximum | many values become one |
| neuron | membranes that outlive a step |

Reference:
    Yao et al., "Spike-driven Transformer V2", ICLR 2024, arXiv:2404.03663, which asks designers of
    chips to look at these operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from spikeformers.analysis.alphabet import (
    AVERAGES,
    KEEPING,
    MAXIMA,
    PRODUCTS,
    SUMS,
    Facts,
    Origin,
    Value,
    interpret,
)
from spikeformers.analysis.audit import judge
from spikeformers.analysis.capture import Graph, capture_inference, factors_of, op_name, short_name
from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.types import ANALOG, Alphabet

__all__ = ["Operation", "inventory"]

OPERATORS = {
    "encode": "encode",
    "AC": "synapse",
    "ACx": "integer synapse",
    "MACint": "integer product",
    "mask": "mask",
    "MAC": "multiply",
}
"""Verdict of the audit -> operator."""

PASSING = {*KEEPING, "getitem", "aten::cat", "aten::stack", "aten::pad", "aten::constant_pad_nd"}
"""What hands spikes on as they are."""


@dataclass(frozen=True)
class Operation:
    """One operation of the folded graph, for one sample and one step.

    Attributes:
        path: Module path in the model's own names.
        op: PyTorch's name, `conv2d` and the like.
        operator: A word of the table above.
        operands: The alphabets that meet.
        outputs: Values that come out.
        fan_in: Values that enter one of them, at most.
        connections: Pairs of an input and an output: additions if every input fired once.
        weights: How many there are.
        accumulator_bits: What no input can overflow, sign included; `None` for real values.
        neurons: Membranes that outlive the step.
        traits: What a chip may limit, by the name of the limit.
    """

    path: str
    op: str
    operator: str
    operands: tuple[str, ...]
    outputs: int
    fan_in: int = 0
    connections: int = 0
    weights: int = 0
    accumulator_bits: int | None = None
    neurons: int = 0
    traits: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def inventory(
    model: nn.Module, example: Tensor, *, image: Alphabet | None = ANALOG, weight_bits: int = 8
) -> tuple[Operation, ...]:
    """List what a chip has to do for one sample in one step.

    Args:
        model: Any module that takes one tensor; in any mode. A folded copy is read.
        example: An input of the shape to list, `[T, B, C, H, W]`.
        image: The values that every input holds, as for `audit`.
        weight_bits: Width of the signed integers that weights become, one scale per tensor; the
            accumulators follow from it.

    Raises:
        InputError: If the model cannot be exported, or `example` is no batch.
    """
    if not isinstance(example, Tensor) or example.ndim < 3:
        raise InputError("example is no batch: expected one tensor [T, B, C, H, W]")
    step = example[:1, :1]
    graph = capture_inference(model, step)
    facts = interpret(graph, image)
    verdicts = {row.node: row.verdict for row in judge(graph, facts)[0]}
    reader = _Reader(graph, facts, dict(graph.run(step)), weight_bits)
    return tuple(reader.operations(verdicts))


@dataclass(frozen=True)
class _Reader:
    """Reads operations off a graph that has run."""

    graph: Graph
    facts: Facts
    values: dict[Node, Any]
    weight_bits: int

    def operations(self, verdicts: Mapping[str, str]) -> Iterator[Operation]:
        for node in self.facts.values:
            if operator := self._operator(node, verdicts.get(node.name)):
                yield self._operation(node, operator)

    def _operator(self, node: Node, verdict: str | None) -> str | None:
        op, signals = op_name(node), self._signals(node)
        if op in OUTPUT_ALPHABETS:
            return "neuron"
        if not signals:
            return None
        if op in AVERAGES and verdict != "encode":
            return "average"
        if verdict is not None:
            is_of_spikes = op in PRODUCTS and len(signals) == 2
            return "spike product" if verdict == "AC" and is_of_spikes else OPERATORS[verdict]
        if op == "aten::sum":
            return "sum"
        if op in MAXIMA:
            return "maximum"
        if op in SUMS and len(signals) == 2:
            is_analog = any(self._value(n).alphabet is None for n in signals)
            return "membrane shortcut" if is_analog else "spike shortcut"
        return None

    def _operation(self, node: Node, operator: str) -> Operation:
        signals = self._signals(node)
        if operator == "neuron":
            signals = [node.all_input_nodes[0]]
        operation = Operation(
            path=self.graph.path(node),
            op=short_name(node),
            operator=operator,
            operands=tuple(str(self._value(n)) for n in self._factors(node) or signals),
            outputs=self._tensor(node).numel(),
        )
        if operator == "neuron":
            traits = self._neuron_traits(node)
            return replace(operation, neurons=operation.outputs, traits=traits)
        add = self._multiplying if op_name(node) in PRODUCTS else self._gathering
        return add(node, operation)

    def _gathering(self, node: Node, operation: Operation) -> Operation:
        """Complete a sum, average or maximum."""
        signals = self._signals(node)
        is_window = op_name(node) in {"aten::avg_pool2d", "aten::max_pool2d"}
        ratio = max(1, sum(self._tensor(n).numel() for n in signals) // operation.outputs)
        side = _side(node, 1, 1) if is_window else math.isqrt(ratio)
        fan_in = side**2 if is_window else ratio
        traits = {} if len(signals) > 1 else {"pool": side}
        connections = fan_in * operation.outputs
        return replace(operation, fan_in=fan_in, connections=connections, traits=traits)

    def _multiplying(self, node: Node, operation: Operation) -> Operation:
        """Complete a product; with ones for factors it counts what enters each output."""
        factors = self._factors(node)
        reached = self._product(node, dict.fromkeys(factors, torch.ones_like))
        weights = [n for n in factors if n not in self._signals(node)]
        bits, traits = self._accumulator_bits(node), self._synapse_traits(node)
        return replace(
            operation,
            fan_in=int(reached.max()),
            connections=int(reached.sum(dtype=torch.float64)),
            weights=sum(self._tensor(n).numel() for n in weights),
            accumulator_bits=bits,
            traits=traits if bits is None else traits | {"accumulator_bits": bits},
        )

    def _value(self, node: Node) -> Value:
        value = self.facts.values[node]
        first: Value = value[0] if isinstance(value, tuple) else value
        return first

    def _tensor(self, node: Node) -> Tensor:
        value = self.values[node]
        first: Tensor = value[0] if isinstance(value, tuple | list) else value
        return first

    def _factors(self, node: Node) -> list[Node]:
        return factors_of(node) if op_name(node) in PRODUCTS else []

    def _signals(self, node: Node) -> list[Node]:
        known = [n for n in node.all_input_nodes if n in self.facts.values]
        return [n for n in known if self._value(n).origin is not Origin.CONSTANT]

    def _product(self, node: Node, magnitudes: Mapping[Node, Any]) -> Tensor:
        """Compute a product with other factors, and without what it adds."""

        def replaced(n: Node) -> Tensor:
            magnitude: Tensor = magnitudes.get(n, torch.zeros_like)(self._tensor(n).float())
            return magnitude

        args, kwargs = map_arg((node.args, node.kwargs), replaced)
        product: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return product

    def _accumulator_bits(self, node: Node) -> int | None:
        """Return how many bits hold the largest sum, with weights as signed integers."""
        factors, signals = self._factors(node), self._signals(node)
        alphabets = {n: self._value(n).alphabet for n in factors if n in signals}
        largest: dict[Node, Any] = dict.fromkeys(factors, self._as_integers)
        is_signed = len(alphabets) < len(factors)
        for n, alphabet in alphabets.items():
            if alphabet is None:
                return None
            most = max(-alphabet.low, alphabet.high)
            largest[n] = partial(torch.full_like, fill_value=most)
            is_signed |= alphabet.low < 0
        return int(self._product(node, largest).max()).bit_length() + is_signed

    def _as_integers(self, weights: Tensor) -> Tensor:
        """Return the magnitudes of weights on a grid of signed integers."""
        steps = 2 ** (self.weight_bits - 1) - 1
        scale = float(weights.abs().max()) / steps or 1.0
        return (weights.abs() / scale).round()

    def _neuron_traits(self, node: Node) -> dict[str, Any]:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        traits: dict[str, Any] = {"readers": len(_readers(node))}
        spikes = self._value(node).alphabet
        if spikes is not None:
            traits["spike"] = max(-spikes.low, spikes.high)
        if "decay" in arguments:
            decay = arguments["decay"]
            decay = self._tensor(decay) if isinstance(decay, Node) else torch.tensor(decay)
            traits["leak"] = "none" if bool((decay == 1).all()) else "proportional"
        if "v_reset" in arguments:
            v_reset = arguments["v_reset"]
            traits["reset"] = "subtract" if v_reset is None else "zero" if v_reset == 0 else "value"
        return traits

    def _synapse_traits(self, node: Node) -> dict[str, Any]:
        op, args = op_name(node), node.args
        traits: dict[str, Any] = {}
        is_biased = op in {"aten::addmm", "aten::baddbmm"} or (
            op.startswith(("aten::conv", "aten::linear")) and len(args) > 2 and args[2] is not None
        )
        traits["bias"] = is_biased
        if op == "aten::conv2d":
            source, weight = self._tensor(args[0]), self._tensor(args[1])  # type: ignore[arg-type]
            stride, padding = (_side(node, i, default) for i, default in ((3, 1), (4, 0)))
            traits |= {
                "kernel": max(weight.shape[2:]),
                "stride": stride,
                "padding": padding,
                "channels": max(source.shape[1], weight.shape[0]),
                "input_size": max(source.shape[2:]),
                "map_size": max(self._tensor(node).shape[2:]),
            }
        return traits


def _side(node: Node, index: int, default: int) -> int:
    """Return the larger side of a window, stride or border."""
    value = node.args[index] if len(node.args) > index else default
    return max(value) if isinstance(value, list | tuple) else int(value)  # type: ignore[arg-type]


def _readers(node: Node) -> set[Node]:
    """Return the operations that a map reaches first; of a neuron, its spikes."""
    is_neuron = op_name(node) in OUTPUT_ALPHABETS
    found: set[Node] = set()
    for user in node.users:
        is_membrane = is_neuron and op_name(user) == "getitem" and user.args[1] != 0
        if user.op != "output" and not is_membrane:
            found |= _readers(user) if op_name(user) in PASSING else {user}
    return found
