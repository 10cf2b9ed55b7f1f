"""What becomes of a clocked network when every spike has a delay of its own.

An asynchronous chip has no steps: it works on a spike when it arrives. Here the folded graph runs
from instant to instant, many of them in a step. An image comes at the beginning of a step, and so
do biases. A spike reaches each operation that reads it after a random delay; operations see what
arrives at the same instant and nothing else; neurons integrate it, leak as much as the time that
has passed asks for, and fire at once. Without delays all spikes of a step meet at its beginning,
which is the clocked run.

`run_async` is such a chip. `run_waiting` takes its neurons out of the question: they wait for all
spikes of a step, so that only operations can go wrong.

Reference:
    Deng et al., "Spiking Token Mixer", NeurIPS 2024: convolutions, linear layers and residual paths
    need no clock, max pools and attention do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from spikeformers.deploy._async_network import AsyncNetwork, Membranes, is_neuron, is_spikes
from spikeformers.deploy._delay_lines import DelayLines

__all__ = ["AsyncRun", "clocked_values", "run_async", "run_waiting"]


@dataclass(frozen=True)
class AsyncRun:
    """What came of a batch.

    Attributes:
        logits: Scores by the step in which they came, `[T, B, K]`; late ones in the last.
        spikes: For each layer of neurons, how often each one fired, `[B, ...]`.
    """

    logits: Tensor
    spikes: tuple[Tensor, ...]

    @property
    def total(self) -> float:
        """How many spikes there were."""
        return sum(float(counts.sum()) for counts in self.spikes)

    def shared_spikes(self, other: AsyncRun) -> float:
        """Return which share of the spikes of both runs they have in common, neuron by neuron."""
        pairs = list(zip(self.spikes, other.spikes, strict=True))
        common = sum(float(torch.minimum(a, b).sum()) for a, b in pairs)
        everything = sum(float(torch.maximum(a, b).sum()) for a, b in pairs)
        return common / everything if everything else 1.0


@torch.no_grad()
def run_async(network: AsyncNetwork, x: Tensor, jitter: float = 0.0, seed: int = 0) -> AsyncRun:
    """Let a batch run through a network whose neurons fire at once.

    Args:
        network: Whose spikes travel.
        x: Encoded batch `[T, B, C, H, W]`, shaped like the network's example but for `T`.
        jitter: Longest delay of a spike on its way to an operation, in steps; every number of ticks
            up to it is as likely.
        seed: Of the delays.

    Raises:
        InputError: If `jitter` is negative.
    """
    counts: dict[Node, Tensor] = {}
    logits: list[Tensor] = []
    lines = DelayLines(network.ticks_of(jitter), seed)
    for begins_step, values in _instants(network, x, lines):
        for node in filter(is_spikes, network.nodes):
            counts[node] = counts.get(node, 0) + values[node][0]
        out = values[network.nodes[-1]][0]
        if begins_step:
            logits.append(out)
        else:
            logits[-1] = logits[-1] + out
    return AsyncRun(torch.stack(logits), tuple(counts.values()))


@torch.no_grad()
def run_waiting(network: AsyncNetwork, x: Tensor, jitter: float = 0.0, seed: int = 0) -> AsyncRun:
    """Let a batch run through a network whose neurons wait for all spikes of a step.

    Spikes reach operations apart, as in `run_async`; neurons add up what comes of all of them and
    fire once per step. Where this differs from the clocked run, an operation has needed the clock.

    Args:
        network: As for `run_async`.
        x: As for `run_async`.
        jitter: As for `run_async`: a step has as many instants.
        seed: As for `run_async`.

    Raises:
        InputError: If `jitter` is negative.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = network.ticks_of(jitter) + 1
    counts: dict[Node, Tensor] = {}
    membranes: Membranes = {}
    logits = []
    for step, image in enumerate(x):
        values: dict[Node, list[Any]] = {n: [v] * parts for n, v in network.constants.items()}
        for node in network.nodes:
            operands = node.all_input_nodes
            if node.op == "placeholder":
                values[node] = [image[None], *[torch.zeros_like(image[None])] * (parts - 1)]
            elif node.op == "output":
                logits.append(sum(values[operands[0]])[0])
            elif is_neuron(node):
                whole = {n: values[n][0] for n in operands} | {
                    operands[0]: sum(values[operands[0]])
                }
                values[node] = [
                    network.fire(node, whole.__getitem__, step * network.ticks, membranes)
                ]
            elif is_spikes(node):
                (fired,) = values[operands[0]]
                counts[node] = counts.get(node, 0) + fired[0][0]
                values[node] = _dealt(fired[0], parts, generator)
            else:
                values[node] = [
                    network.combine(node, partial(_part, values, k), begins_step=k == 0)
                    for k in range(parts)
                ]
    return AsyncRun(torch.stack(logits), tuple(counts.values()))


def clocked_values(network: AsyncNetwork, x: Tensor) -> dict[Node, Any]:
    """Return the values of all nodes in the last step of a clocked run."""
    *_, (_, values) = _instants(network, x, DelayLines(0, 0))
    return values


def _part(values: dict[Node, list[Any]], k: int, node: Node) -> Any:
    return values[node][k]


def _dealt(spikes: Tensor, parts: int, generator: torch.Generator) -> list[Tensor]:
    """Give every spike to one of several parts."""
    places = torch.randint(parts, spikes.shape, generator=generator).to(spikes.device)
    return [spikes * (places == place).to(spikes) for place in range(parts)]


def _instants(
    network: AsyncNetwork, x: Tensor, lines: DelayLines
) -> Iterator[tuple[bool, dict[Node, Any]]]:
    """Yield whether a step begins, and the values of all nodes, when anything happens."""
    membranes: Membranes = {}
    end, tick = len(x) * network.ticks, 0
    while tick < end or lines.is_waiting:
        begins_step = tick % network.ticks == 0 and tick < end
        if begins_step or lines.arrives(tick):
            image = x[tick // network.ticks] if begins_step else torch.zeros_like(x[0])
            values = _instant(network, image[None], tick, begins_step, lines, membranes)
            yield begins_step, values
        lines.pass_by(tick)
        tick += 1


def _instant(
    network: AsyncNetwork,
    image: Tensor,
    tick: int,
    begins_step: bool,
    lines: DelayLines,
    membranes: Membranes,
) -> dict[Node, Any]:
    """Compute all nodes from what arrives now, and send the spikes that fall."""
    values = dict(network.constants)
    for node in network.nodes:

        def operand(n: Node, reader: Node = node) -> Any:
            return lines.take((n, reader), tick) if is_spikes(n) else values[n]

        if node.op == "placeholder":
            values[node] = image
        elif node.op == "output":
            values[node] = operand(node.all_input_nodes[0])
        elif is_neuron(node):
            values[node] = network.fire(node, operand, tick, membranes)
        else:
            values[node] = network.combine(node, operand, begins_step=begins_step)
        if is_spikes(node):
            for reader in node.users:
                lines.send((node, reader), values[node], tick)
    return values
