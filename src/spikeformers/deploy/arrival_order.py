"""Which operations care in which order their spikes arrive?

None that is additive in its signals, `f(a + b) = f(a) + f(b)`: weights, sums and averages. Maxima
and products of two signals need their inputs at the same instant. A neuron sums in any order, but
fires on a part of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from spikeformers.analysis.alphabet import AVERAGES, MAXIMA, PRODUCTS, SUMS
from spikeformers.analysis.capture import factors_of, op_name, short_name
from spikeformers.deploy._async_network import AsyncNetwork, Membranes, is_neuron, is_spikes
from spikeformers.deploy.async_sim import clocked_values

__all__ = ["OrderRow", "arrival_order"]

COMBINING = {*PRODUCTS, *AVERAGES, *MAXIMA, *SUMS}


@dataclass(frozen=True)
class OrderRow:
    """Whether an operation cares in which order its inputs arrive.

    Attributes:
        path: Module path in the model's own names.
        op: The operator's name.
        is_independent: Whether it is of a kind that does not.
        changed: Share of its outputs that changed when its inputs came in two parts, measured.
    """

    path: str
    op: str
    is_independent: bool
    changed: float


@torch.no_grad()
def arrival_order(network: AsyncNetwork, x: Tensor, seed: int = 0) -> tuple[OrderRow, ...]:
    """Judge every operation that combines values, and measure it on the last step of a batch.

    The spikes of every layer are dealt at random to two instants. What an operation makes of them
    one after the other, added up, is compared with what it makes of all together.

    Args:
        network: Whose operations are asked.
        x: Encoded batch `[T, B, C, H, W]`, shaped like the network's example but for `T`.
        seed: Of the deal.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = clocked_values(network, x)
    first, second = dict(whole), dict(whole)
    rows = []
    for node in network.nodes:
        if node.op != "call_function":
            second[node] = torch.zeros_like(whole[node])  # An image comes at once.
            continue
        is_additive = _is_additive(node, network)
        if is_neuron(node):
            membranes: Membranes = {}
            (together, *_) = network.fire(node, whole.__getitem__, 0, {})
            (a, *_) = network.fire(node, first.__getitem__, 0, membranes)
            (b, *_) = network.fire(node, second.__getitem__, 1, membranes)
        else:
            together = network.combine(node, whole.__getitem__, begins_step=True)
            a = network.combine(node, first.__getitem__, begins_step=True)
            b = network.combine(node, second.__getitem__, begins_step=False)
            first[node], second[node] = a, b
            if is_spikes(node) or not is_additive:
                first[node], second[node] = _dealt(together, generator)
        if is_neuron(node) or op_name(node) in COMBINING:
            row = (network.graph.path(node), short_name(node), is_additive)
            rows.append(OrderRow(*row, _changed(together, a, b)))
    return tuple(rows)


def _is_additive(node: Node, network: AsyncNetwork) -> bool:
    if is_neuron(node) or op_name(node) in MAXIMA:
        return False
    signals = [n for n in factors_of(node) if n not in network.constants]
    return op_name(node) not in PRODUCTS or len(signals) < 2


def _dealt(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give every value to one of two parts."""
    is_first = torch.rand(values.shape, generator=generator) < 0.5
    first = values * is_first.to(values)
    return first, values - first


def _changed(together: Tensor, a: Tensor, b: Tensor) -> float:
    """Return the share of values to which two parts do not add up, beyond rounding."""
    tolerance = 1e-4 * together.abs().max().clamp_min(1)
    return float(((a + b - together).abs() > tolerance).float().mean())
