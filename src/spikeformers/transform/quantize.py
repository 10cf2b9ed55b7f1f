"""The network that travels as additions: `quantize(model, batches)`.

    weight      8 bits, in steps of its output channel, a power of two
    current     (sum of the weights that spikes select) << shift, a fixed-point number
    stream      currents add: all have one unit
    mean        a sum; the threshold behind it takes the factor
    neuron      fires from threshold = ceil(v_threshold / unit) on, and leaks by a shift

Norms and scales are folded before, so that behind the encoding layer, which alone sees real
numbers, nothing multiplies. `docs/reference/integer-network.md` describes the result.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikeformers.analysis import Graph, capture, interpret
from spikeformers.analysis.audit import judge
from spikeformers.errors import InputError
from spikeformers.layers import fold
from spikeformers.transform.between import spike_between
from spikeformers.transform.integer import SAMPLES, TIMESTEPS, IntegerNetwork, lower
from spikeformers.transform.integer.rounding import FRACTION_BITS
from spikeformers.transform.merge import merge_depthwise

__all__ = ["quantize"]


FIX = (
    "merge=True makes one dense convolution of a depthwise and a pointwise one, "
    "neuron_between=True puts a neuron between them"
)
"""What helps where a depthwise convolution hands real values to a pointwise one."""


@torch.no_grad()
def quantize(
    model: nn.Module,
    batches: Tensor | Iterable[Tensor],
    *,
    neuron_between: bool = False,
    merge: bool = False,
) -> IntegerNetwork:
    """Return the integer network of a spike-driven model, and print what it does.

    Args:
        model: In eval mode; it is not changed.
        batches: Encoded inputs `[T, B, C, H, W]` of one size, a batch or several. They run once:
            additions are counted, and every result is checked to fit into 32 bits.
        neuron_between: Whether to put a neuron where a depthwise convolution hands real values to a
            pointwise one (see `spike_between`). That is another network, to be fine-tuned first.
        merge: Whether to make one dense convolution of the two instead (see `merge_depthwise`).

    Raises:
        InputError: If an operation multiplies or has no integer form (it is named), if `batches` is
            empty, or if both options are given.
    """
    if merge and neuron_between:
        raise InputError("merge=True and neuron_between=True: choose one")
    batches = [batches] if isinstance(batches, Tensor) else list(batches)
    if not batches:
        raise InputError("batches is empty: give encoded inputs [T, B, C, H, W]")
    if neuron_between:
        model = spike_between(model, batches)
    folded = (merge_depthwise(model) if merge else fold(model)).eval().double()
    image = tuple(batches[0].shape[2:])
    example = torch.zeros(TIMESTEPS, SAMPLES, *image, dtype=torch.float64)
    graph = capture(folded, example)
    _refuse_products(graph)
    network = IntegerNetwork(lower(graph, example), image, FRACTION_BITS)
    additions = sum(sum(network.run(x)[1].values()) for x in batches)
    samples = sum(x.shape[1] for x in batches)
    print(network.summary())
    print(f"{additions / samples:,.0f} additions per sample, mean of {samples}")
    return network


def _refuse_products(graph: Graph) -> None:
    """Raise if anything behind the encoding layer multiplies."""
    rows, _ = judge(graph, interpret(graph))
    products = [row for row in rows if row.verdict in ("MAC", "MACint")]
    if not products:
        return
    named = "; ".join(f"{row.path or '(model)'} ({row.op}): {row.reason}" for row in products[:5])
    fix = f"; {FIX}" if any(row.op == "conv2d" for row in products) else ""
    raise InputError(f"the model multiplies in {len(products)} operations: {named}{fix}")
