"""Which factors merge exactly into something there already, so that nothing multiplies by them.

| what | merges into |
|---|---|
| a known positive number: a scale, a mean | the thresholds and weights that read it |
| any known number | the weights before it |
| gain and offset of a norm | weights and bias of the linear map before it |

A threshold absorbs a factor if its neuron resets to 0 or by subtraction: `c x` reaches
`v_threshold` when `x` reaches `v_threshold / c`. This is exact arithmetic; in floating point it
rounds unless the factor is a power of two.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from spikeformers.analysis.alphabet import (
    AVERAGES,
    KEEPING,
    MAXIMA,
    PRODUCTS,
    SUMS,
    Facts,
    constant_factor,
)
from spikeformers.analysis.capture import Graph, factors_of, op_name
from spikeformers.ops import OUTPUT_ALPHABETS

__all__ = ["Merging"]

# What commutes with a positive factor: f(c x) = c f(x).
HOMOGENEOUS = {*KEEPING, *MAXIMA, *AVERAGES, "aten::sum", "aten::neg"}
VIEWS = {f"aten::{name}" for name in ("view", "_unsafe_view", "reshape", "flatten", "unflatten")}


class Merging:
    """Looks around a node for what takes its factor. `None`: nothing does, or not all of it."""

    def __init__(self, graph: Graph, facts: Facts) -> None:
        self.graph = graph
        self.facts = facts

    def of_factor(self, node: Node, factor: float) -> list[str] | None:
        """Name what absorbs a known factor behind the product `node`, or else before it."""
        (operand,) = [n for n in node.all_input_nodes if not self.facts.is_constant(n)]
        places = self._behind(node) if factor > 0 else None
        return self._before(operand, node) if places is None else places

    def of_norm(self, node: Node) -> list[str] | None:
        """Name the linear map right before a norm, if its channels are those of the norm."""
        rows: Any = node.args[0]
        if not all(map(self.facts.is_constant, node.all_input_nodes[1:])):
            return None
        channels, reader = rows.meta["val"].shape[1:], node
        # Views that keep the axis of channels and all behind it, as folding time into the batch.
        while rows.meta["val"].shape[-len(channels) :] == channels and set(rows.users) == {reader}:
            if op_name(rows) not in VIEWS:
                return self._channelwise_map(rows, len(channels))
            rows, reader = rows.all_input_nodes[0], rows
        return None

    def _channelwise_map(self, node: Node, axes: int) -> list[str] | None:
        """Name a convolution, or a linear map whose channels come last."""
        last = {"aten::linear", "aten::addmm", "aten::mm"}
        is_aligned = "conv" in op_name(node) or (op_name(node) in last and axes == 1)
        takes_it = op_name(node) in PRODUCTS and is_aligned and self._is_synapse(node)
        return [f"the weights of {self.graph.path(node)}"] if takes_it else None

    def _behind(self, node: Node) -> list[str] | None:
        """Name what absorbs a positive factor of `node` behind it; `None` if a reader cannot."""
        return _joined([self._absorbed_by(user, node) for user in node.users])

    def _absorbed_by(self, user: Node, node: Node) -> list[str] | None:
        op, path = op_name(user), self.graph.path(user)
        if op in OUTPUT_ALPHABETS:
            if not _scales_with_threshold(user, node):
                return None
            # A spike as high as its threshold hands the factor on.
            spikes = self.facts.of(user).alphabet
            is_high = spikes is not None and spikes.scale is None
            return _joined([[f"the threshold of {path}"], self._behind(user) if is_high else []])
        if op in PRODUCTS and self._is_synapse(user):
            return [f"the weights of {path}"]
        # An alphabet carries the factor on as its scale.
        is_tracked = self.facts.of(user).alphabet is not None
        if is_tracked or op in HOMOGENEOUS or constant_factor(user, self.facts) is not None:
            return self._behind(user)
        return None

    def _before(self, node: Node, reader: Node) -> list[str] | None:
        """Name the linear maps that absorb a factor of `node`, if only `reader` reads it."""
        if self.facts.is_constant(node):
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
        signals = [n for n in node.all_input_nodes if not self.facts.is_constant(n)]
        is_product = len(signals) == 1 and factors_of(node).count(signals[0]) == 1
        return is_product and constant_factor(node, self.facts) is None


def _joined(found: list[list[str] | None]) -> list[str] | None:
    """Return all places, or `None` if one is missing."""
    return None if None in found else [place for places in found for place in places or []]


def _scales_with_threshold(neuron: Node, current: Node) -> bool:
    """Whether a factor of the current is the same as a divisor of the threshold: `c h` for `h`."""
    names = [argument.name for argument in neuron.target._schema.arguments]  # type: ignore[union-attr]
    arguments = {**dict(zip(names, neuron.args, strict=False)), **neuron.kwargs}
    is_at_rest_0 = arguments.get("v0") is None and arguments.get("v_reset") in (0.0, None)
    reads_spikes_only = all(user.args[1:] in ((), (0,)) for user in neuron.users)
    has_threshold = "v_threshold" in arguments
    return arguments["x"] is current and has_threshold and is_at_rest_0 and reads_spikes_only
