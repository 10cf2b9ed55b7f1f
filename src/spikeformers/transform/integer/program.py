"""What the lowering of a graph fills: the operations so far, and what each node's result is.

Every result is that of one step of one sample: axes of time and batch are dropped, and what only
reshapes them disappears. A constant factor is no operation either; it changes what one unit of the
result stands for, which is kept as an exact fraction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.fx import Node

from spikeformers.analysis import Graph, interpret
from spikeformers.analysis.capture import op_name
from spikeformers.errors import InputError
from spikeformers.transform.integer.network import Operation

__all__ = ["SAMPLES", "TIMESTEPS", "Held", "Program", "Rule", "table"]

TIMESTEPS, SAMPLES = 2, 3
"""Lengths of the leading axes in the captured graph, by which they are recognised."""


@dataclass(frozen=True)
class Held:
    """The result of an operation.

    Attributes:
        name: Of the operation.
        unit: What one unit stands for.
        low: Bound from below; `None` if there is none.
        high: Bound from above.
        is_current: Whether it is a fixed-point number; else it counts spikes.
    """

    name: str
    unit: Fraction
    low: int | None
    high: int | None
    is_current: bool = False

    @property
    def is_binary(self) -> bool:
        """Whether it holds spikes, and not sums of them."""
        return (self.low, self.high) == (0, 1)


class Program:
    """The operations of a graph, in the order in which they run.

    Attributes:
        of: Node -> its result.
        operations: What has been emitted.
    """

    def __init__(self, graph: Graph, example: Tensor) -> None:
        self.graph = graph
        self.facts = interpret(graph)
        self.of: dict[Node, Held] = {}
        self.operations: list[Operation] = []
        self._constants: dict[Node, Tensor] = {}
        for node, value in graph.run(example):
            if graph.inputs.get(node.name) == "image":
                self.of[node] = Held("image", Fraction(1), None, None)
            elif self.facts.is_constant(node):
                self._constants[node] = value

    def constant(self, argument: Any) -> Any:
        """Return what a constant argument is; numbers are themselves."""
        return self._constants[argument].detach() if isinstance(argument, Node) else argument

    def operand(self, node: Node, argument: Any) -> Held:
        """Return the integers that a node works on.

        Raises:
            InputError: If the argument is the image or a constant.
        """
        held = self.of.get(argument)
        if held is None or held.name == "image":
            what = "a constant" if held is None else "the image itself"
            raise self.refusal(node, f"works on {what}: only a convolution encodes the image")
        return held

    def emit(self, kind: str, node: Node, inputs: Sequence[Held], held: Held, **facts: Any) -> Held:
        """Append an operation with the result `held`."""
        if "shape" not in facts:
            facts["shape"] = self.inner_shape(node)
        operation = Operation(
            kind=kind,
            name=held.name,
            path=self.graph.path(node),
            inputs=tuple(operand.name for operand in inputs),
            scale=float(held.unit),
            low=held.low,
            high=held.high,
            **facts,
        )
        self.operations.append(operation)
        return held

    def ending_with(self, output: Node) -> tuple[Operation, ...]:
        """Return the operations; the last one gives the scores, in the unit that they have."""
        results = [self.of[node] for node in output.all_input_nodes if node in self.of]
        if len(results) != 1 or not self.operations or results[0].name != self.operations[-1].name:
            raise InputError("the model gives no scores or several results: expected [T, B, K]")
        *before, last = self.operations
        return (*before, dataclasses.replace(last, scale=float(results[0].unit)))

    def shifted(self, node: Node, held: Held, bits: int, shape: Sequence[int]) -> Held:
        """Append binary zeros to a result, so that its unit is finer."""
        if bits == 0:
            return held
        low, high = (None if bound is None else bound << bits for bound in (held.low, held.high))
        name = f"{node.name}.{held.name}"
        finer = Held(name, held.unit / 2**bits, low, high, is_current=True)
        return self.emit("shift", node, [held], finer, shape=tuple(shape), settings={"bits": bits})

    def aligned(self, node: Node, operands: Sequence[Node]) -> list[Held]:
        """Return several results in one unit: the coarser ones shift to the left.

        Raises:
            InputError: If their units are no powers of two apart.
        """
        holds = [self.operand(node, operand) for operand in operands]
        finest = min(held.unit for held in holds)
        bits = [_exponent(held.unit / finest) for held in holds]
        if None in bits:
            raise self.refusal(node, "adds values whose units are no powers of two apart")
        return [
            self.shifted(node, held, n or 0, self.inner_shape(operand))
            for held, n, operand in zip(holds, bits, operands, strict=True)
        ]

    def summed(self, node: Node, held: Held, terms: int) -> Held:
        """Return the sum of so many values."""
        low, high = (None if bound is None else terms * bound for bound in (held.low, held.high))
        return self.same(node, held, low=low, high=high)

    def leading(self, node: Node) -> int:
        """Return how many axes in front are time and batch: two, or one where they are merged."""
        shape = tuple(node.meta["val"].shape)
        if shape[:1] in ((TIMESTEPS * SAMPLES,), (SAMPLES,)):
            return 1
        if shape[:2] in ((TIMESTEPS, SAMPLES), (1, SAMPLES)):
            return 2
        raise self.refusal(node, f"gives {list(shape)}: time or samples mix with other axes")

    def inner_shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of one step of one sample."""
        return tuple(node.meta["val"].shape[self.leading(node) :])

    def inner_axes(self, node: Node, operand: Node, axes: int | Sequence[int]) -> list[int]:
        """Return axes of an operand as those of one step of one sample."""
        count, lead = operand.meta["val"].ndim, self.leading(operand)
        inner = [axis % count - lead for axis in ([axes] if isinstance(axes, int) else axes)]
        if min(inner, default=0) < 0:
            raise self.refusal(node, "works along time or samples")
        return inner

    def same(self, node: Node, held: Held, **changes: Any) -> Held:
        """Return a result under the name of a node, with other facts."""
        return dataclasses.replace(held, name=node.name, **changes)

    def refusal(self, node: Node, reason: str) -> InputError:
        """Return the error that names a node."""
        return InputError(f"{self.graph.path(node) or '(model)'} ({op_name(node)}) {reason}")


Rule = Callable[..., Held]
"""Takes the program, a node and its arguments; appends what it does and returns its result."""


def table(rule: Rule, names: str) -> dict[str, Rule]:
    """Return a rule under several names of PyTorch's operators."""
    return {f"aten::{name}": rule for name in names.split()}


def _exponent(ratio: Fraction) -> int | None:
    """Return the binary logarithm of a whole power of two."""
    bits = ratio.numerator.bit_length() - 1
    return bits if ratio == 2**bits else None
