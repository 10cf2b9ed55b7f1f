"""RevSFormer, a spiking transformer whose training memory does not grow with depth.

The tokenizer and the branches of Spikingformer, but the potentials run in two streams that feed
each other: `y1 = x1 + attn(x2)`, then `y2 = x2 + mlp(y1)`. The inputs of a block follow from its
outputs, for all time steps at once, so the backward pass restores them instead of keeping them.

Paper: Zhang and Zhang, "Memory-Efficient Reversible Spiking Neural Networks", AAAI 2024,
arXiv:2312.07922.
Code: mi804/RevSNN, Apache-2.0.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from spikeformers.layers import (
    SSA,
    Branch,
    Chain,
    ChannelMLP,
    ClassificationHead,
    ReversibleTrunk,
    SpikingTokenizer,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import LIF, NeuronFactory

CIFAR = dict(pools=2)
EVENTS = dict(neuron=partial(LIF, tau=1.5))


class TwoStreams(nn.Module):
    """Start both streams from the same potentials: `[T, B, C, H, W]` -> `[T, B, 2C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input with itself."""
        return torch.cat([x, x], dim=2)


@register(
    "revsformer",
    variants={
        "cifar_2_384": dict(dim=384, depth=2, heads=12, num_classes=10, **CIFAR),
        "cifar_4_384": dict(dim=384, depth=4, heads=12, num_classes=10, **CIFAR),
        "events_2_256": dict(dim=256, depth=2, heads=16, in_channels=2, num_classes=10, **EVENTS),
        "tiny": dict(dim=16, depth=2, heads=4, pools=2, num_classes=10),
    },
)
def revsformer(
    *,
    dim: int,
    depth: int,
    heads: int,
    expansion: int = 4,
    pools: int = 4,
    trunk: Callable[..., nn.Module] = ReversibleTrunk,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
) -> Backbone:
    """Build a RevSFormer.

    Args:
        dim: Width of each stream, a multiple of 8.
        depth: Number of blocks.
        heads: Attention heads; they divide `dim`.
        expansion: Widening of the MLP.
        pools: How many of the tokenizer's first four convolutions, the last ones, halve the map.
        trunk: Puts the two streams around the blocks.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.

    Raises:
        InputError: If `dim` is no multiple of 8 and of `heads`, or `pools` is not 0 to 4.

    Deviations:
        The official backward pass updates the running statistics inside the blocks a second time.
        Here they are updated once; official weights are loaded with a `TwiceCountingTrunk`, which
        does as there, unless `corrected`. Its sums of potentials are rounded, so that the restored
        inputs may differ from the true ones; here they are exact (see `layers/recompute.py`).

    Reference:
        Zhang and Zhang, AAAI 2024, arXiv:2312.07922.
    """

    def block() -> dict[str, Branch]:
        attn = SSA(dim, heads, neuron=neuron)
        mlp = ChannelMLP(dim, expansion, neuron=neuron)
        return dict(attn=Branch(neuron(), attn), mlp=Branch(neuron(), mlp))

    tokenizer = SpikingTokenizer(in_channels, dim, pools, neuron=neuron)
    embed = Chain(tokenizer=tokenizer, streams=TwoStreams())
    blocks = trunk([block() for _ in range(depth)])
    head = None if num_classes is None else ClassificationHead(2 * dim, num_classes, nn.Identity)
    return Backbone([Stage(embed, blocks, 2 * dim, 2**pools)], head, in_channels)
