"""Which values a tensor can hold, as a static fact of the graph (abstract interpretation).

Every value gets an `Alphabet` (or `ANALOG`) and an origin. The table `RULES` says how each operator
of PyTorch turns the alphabets of its operands into that of its result; our own ops declare theirs
in `ops.OUTPUT_ALPHABETS`. What stands in neither table is analog (`None`) and listed as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from spikeformers.analysis.capture import Graph, factors_of, op_name
from spikeformers.analysis.rules import (
    AVERAGES,
    ELEMENTWISE,
    FACTORIES,
    KEEPING,
    MAXIMA,
    NORMS,
    PRODUCTS,
    RULES,
    SUMS,
    Uncovered,
    averaged,
    fixed,
    uncovered,
)
from spikeformers.analysis.value import Origin, Value, is_from
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.types import ANALOG, Alphabet

__all__ = [
    "AVERAGES",
    "ELEMENTWISE",
    "KEEPING",
    "MAXIMA",
    "NORMS",
    "PRODUCTS",
    "RULES",
    "SUMS",
    "Facts",
    "Origin",
    "Value",
    "constant_factor",
    "interpret",
]


@dataclass(frozen=True)
class Facts:
    """What is known about all tensors of a graph.

    Attributes:
        values: Node -> its value, or one per output of a custom op.
        unknown: Nodes that neither table covers, in the order in which they run.
    """

    values: dict[Node, Any] = field(default_factory=dict)
    unknown: list[Node] = field(default_factory=list)

    def of(self, node: Node) -> Value:
        """Return what is known about an operand; of several outputs, about the first."""
        value = self.values.get(node, Value(Origin.CONSTANT))
        return value[0] if isinstance(value, tuple) else value

    def is_constant(self, node: Node) -> bool:
        """Whether an operand is computed from weights alone."""
        return self.of(node).origin is Origin.CONSTANT


def interpret(graph: Graph, image: Alphabet | None = ANALOG) -> Facts:
    """Carry alphabets and origins from the inputs through every node of a graph.

    Args:
        graph: What a model computes.
        image: The values that its input can hold. Of an analog input, what is affine counts as
            image still; integers are signals like those of a neuron.
    """
    facts = Facts()
    seen = Value(Origin.IMAGE) if image is None else Value(Origin.SIGNAL, image)
    for node in graph.nodes:
        if node.op == "placeholder":
            is_image = graph.inputs[node.name] == "image"
            facts.values[node] = seen if is_image else Value(Origin.CONSTANT)
        elif node.op == "call_function" and node.meta.get("val") is not None:
            facts.values[node] = _transfer(node, facts)
    return facts


def _transfer(node: Node, facts: Facts) -> Value | tuple[Value, ...]:
    name = op_name(node)
    if name == "getitem":
        container = facts.values[node.all_input_nodes[0]]
        index: Any = node.args[1]
        return container[index] if isinstance(container, tuple) else container
    if name in OUTPUT_ALPHABETS:
        outputs = OUTPUT_ALPHABETS[name](*node.args, **node.kwargs)
        values = tuple(Value(Origin.SIGNAL, alphabet) for alphabet in outputs)
        return values if isinstance(node.meta["val"], tuple | list) else values[0]
    args, kwargs = map_arg((node.args, node.kwargs), facts.values.get)
    origin = _origin(node, facts)
    try:
        return Value(origin, RULES.get(name, uncovered)(node, *args, **kwargs))
    except Uncovered:
        is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if origin is Origin.CONSTANT and not is_random:
            return Value(Origin.CONSTANT)
        facts.unknown.append(node)
        return Value(Origin.SIGNAL)


def _origin(node: Node, facts: Facts) -> Origin:
    """Return what a result is computed from, given that its operator is in the table."""
    operands = [facts.values[n] for n in node.all_input_nodes if n in facts.values]
    origins = [value.origin for value in operands]
    name = op_name(node)
    if name in FACTORIES or all(origin is Origin.CONSTANT for origin in origins):
        return Origin.CONSTANT
    if Origin.SIGNAL in origins or name in MAXIMA:
        return Origin.SIGNAL
    # The product of the image with itself is not affine, nor is a quotient by it.
    if name in PRODUCTS:
        by_image = [is_from(facts.values.get(factor), Origin.IMAGE) for factor in factors_of(node)]
        if by_image == [True, True] or (name == "aten::div" and by_image[-1]):
            return Origin.SIGNAL
    return Origin.IMAGE


def constant_factor(node: Node, facts: Facts) -> float | None:
    """Return the number by which a product or average scales its operand, if it is known."""
    name = op_name(node)
    if node in facts.unknown:
        return None
    if name in AVERAGES:
        return 1 / averaged(node)
    args = map_arg(node.args, facts.values.get)
    if name == "aten::mul":
        return next((c for c in map(fixed, args) if c is not None), None)
    if name == "aten::div" and (divisor := fixed(args[1])):
        return 1 / divisor
    return None
