"""A folded graph that can be computed from instant to instant instead of from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from spikeformers.analysis.alphabet import Origin, Value, interpret
from spikeformers.analysis.capture import capture_inference, op_name, short_name
from spikeformers.errors import InputError
from spikeformers.neurons import AcrossBatch
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.ops.lif.reference import along_channels

__all__ = ["AsyncNetwork", "Membranes", "is_neuron", "is_spikes"]

Membranes = dict[Node, tuple[Tensor, int]]
"""Layer of neurons -> its membranes, and the tick at which they last changed."""


class AsyncNetwork:
    """The folded form of a model, in which spikes travel one by one.

    Args:
        model: Any module with IF and LIF neurons that takes one tensor; in any mode.
        example: An input of the shape to run, `[T, B, C, H, W]`; any `T` can run.
        ticks: Instants that a step is divided into.

    Raises:
        InputError: If the model cannot be exported or has other neurons, or `ticks` is below 1.
    """

    def __init__(self, model: nn.Module, example: Tensor, ticks: int = 16) -> None:
        if ticks < 1:
            raise InputError(f"ticks={ticks}: expected at least 1")
        for path, module in model.named_modules():
            if isinstance(module, AcrossBatch):
                raise InputError(f"{path} integrates across the batch: no spike can run through it")
        self.ticks = ticks
        self.graph = capture_inference(model, example[:1])
        facts = interpret(self.graph).values
        values = dict(self.graph.run(example[:1]))
        self.constants = {n: v for n, v in values.items() if _is_constant(facts.get(n))}
        self.nodes = [node for node in values if node not in self.constants]
        self.offsets = self._offsets(values)

    def _offsets(self, values: dict[Node, Any]) -> dict[Node, Tensor]:
        """Return what operations add to their signals, biases for example: their value at zero."""
        offsets = {}
        for node in self.nodes:
            if is_neuron(node) and op_name(node) != "spikeformers::lif":
                path = self.graph.path(node)
                raise InputError(f"{path} is {short_name(node)}: expected IF and LIF neurons only")
            if node.op == "call_function" and not is_neuron(node):
                zeros = {n: tree_map(torch.zeros_like, values[n]) for n in node.all_input_nodes}
                offset = _call(node, (zeros | self.constants).__getitem__)
                if isinstance(offset, Tensor) and offset.any():
                    offsets[node] = offset
        return offsets

    def ticks_of(self, jitter: float) -> int:
        """Return a delay in ticks.

        Raises:
            InputError: If it is negative.
        """
        if jitter < 0:
            raise InputError(f"jitter={jitter}: expected a delay of at least 0 steps")
        return round(jitter * self.ticks)

    def combine(self, node: Node, operand: Callable[[Node], Any], *, begins_step: bool) -> Any:
        """Compute what is no neuron; what it adds to its signals comes once per step."""
        value = _call(node, operand)
        return value if begins_step or node not in self.offsets else value - self.offsets[node]

    def fire(
        self, node: Node, operand: Callable[[Node], Any], tick: int, membranes: Membranes
    ) -> tuple[Tensor, ...]:
        """Compute a layer of neurons by its own equation, with the leak of the time that passed.

        `h = v + (1 - decay) (x - v)` leaks and weighs the input by one number; with
        `decay ** elapsed` for the leak, another factor keeps the input's weight.
        """
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        arguments = dict(zip(names, map_arg(node.args, operand), strict=False))
        membrane, last = membranes.get(node, (None, tick - self.ticks))
        decay = arguments["decay"]
        kept = decay ** ((tick - last) / self.ticks)
        if arguments["decay_input"]:
            weight = along_channels((1 - decay) / (1 - kept), arguments["x"][0])
            arguments["x"] = arguments["x"] * weight.to(arguments["x"])
        outputs: tuple[Tensor, ...] = node.target(**arguments | {"v0": membrane, "decay": kept})  # type: ignore[operator]
        membranes[node] = outputs[1], tick
        return outputs


def is_neuron(node: Node) -> bool:
    """Whether a node is a layer of neurons."""
    return op_name(node) in OUTPUT_ALPHABETS


def is_spikes(node: Node) -> bool:
    """Whether a node is the first output of a layer of neurons."""
    is_first = op_name(node) == "getitem" and not node.args[1]
    return is_first and is_neuron(node.all_input_nodes[0])


def _call(node: Node, operand: Callable[[Node], Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), operand)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_constant(value: Any) -> bool:
    return isinstance(value, Value) and value.origin is Origin.CONSTANT
