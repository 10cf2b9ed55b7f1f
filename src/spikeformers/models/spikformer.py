"""Spikformer, the first spiking transformer with self-attention.

A convolutional tokenizer (spiking patch splitting), then blocks of spiking self-attention, which
needs no softmax because spikes are never negative, and of an MLP. A neuron ends every branch, and
its spikes are added to the stream: the stream holds small integers, one more per branch.

Paper: Zhou et al., "Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023,
arXiv:2209.15425.
Code: ZK-Zhou/spikformer, MIT; the variants with pooling in front of the neuron (CML) are from
zhouchenlin2096/Spikingformer-CML, Apache-2.0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from spikeformers.layers import (
    SPS,
    SSA,
    Blocks,
    Chain,
    ChannelMLP,
    ClassificationHead,
    LinearBN,
    fire_then_pool,
    pool_then_fire,
    sew,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import LIF, NeuronFactory

CIFAR = dict(pools=2, qkv=partial(LinearBN, bias=True))
EVENTS = dict(scale=0.25)

_SIZES: dict[str, dict[str, Any]] = {
    "6_512": dict(dim=512, depth=6, heads=8),
    "8_384": dict(dim=384, depth=8, heads=6),
    "8_512": dict(dim=512, depth=8, heads=8),
    "8_768": dict(dim=768, depth=8, heads=12),
    "10_512": dict(dim=512, depth=10, heads=8),
    "cifar_4_256": dict(dim=256, depth=4, heads=8, num_classes=10, **CIFAR),
    "cifar_2_384": dict(dim=384, depth=2, heads=12, num_classes=10, **CIFAR),
    "cifar_4_384": dict(dim=384, depth=4, heads=12, num_classes=10, **CIFAR),
    "events_2_256": dict(dim=256, depth=2, heads=16, in_channels=2, num_classes=10, **EVENTS),
    # A small size of our own, for images of 32x32 pixels.
    "xs32": dict(dim=80, depth=2, heads=4, pools=2, num_classes=10),
}


@register(
    "spikformer",
    variants={
        **_SIZES,
        **{f"cml_{name}": dict(**size, downsample=pool_then_fire) for name, size in _SIZES.items()},
        "tiny": dict(dim=16, depth=1, heads=4, pools=2, num_classes=10),
    },
)
def spikformer(
    *,
    dim: int,
    depth: int,
    heads: int,
    expansion: int = 4,
    pools: int = 4,
    downsample: Callable[..., Chain] = fire_then_pool,
    qkv: Callable[..., nn.Module] = LinearBN,
    scale: float = 0.125,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
) -> Backbone:
    """Build a Spikformer.

    Args:
        dim: Width of the tokens, a multiple of 8.
        depth: Number of blocks.
        heads: Attention heads; they divide `dim`.
        expansion: Widening of the MLP.
        pools: How many of the tokenizer's four convolutions, the last ones, halve the map.
        downsample: Arranges pooling and neuron: `fire_then_pool`, or `pool_then_fire` (CML).
        qkv: Makes the synapses of q, k and v.
        scale: Factor of the attention product.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.

    Raises:
        InputError: If `dim` is no multiple of 8 and of `heads`, or `pools` is not 0 to 4.

    Deviations:
        The official CIFAR file starts the attention and MLP weights from a truncated normal
        distribution; here all synapses start as PyTorch's do. Its drop path is never called; here
        there is none. Its event file takes 128x128 pixels only; here every size fits.

    Reference:
        Zhou et al., ICLR 2023, arXiv:2209.15425, table 1.
    """

    def block() -> dict[str, nn.Module]:
        attn = SSA(dim, heads, neuron=neuron, qkv=qkv, scale=scale)
        mlp = ChannelMLP(dim, expansion, neuron=neuron)
        return dict(
            attn=sew(Chain(fn=attn, neuron=neuron())), mlp=sew(Chain(fn=mlp, neuron=neuron()))
        )

    embed = SPS(in_channels, dim, pools, downsample, neuron)
    stage = Stage(embed, Blocks([block() for _ in range(depth)]), dim, 2**pools)
    # The stream holds spikes: no neuron stands in front of the classifier.
    head = None if num_classes is None else ClassificationHead(dim, num_classes, nn.Identity)
    return Backbone([stage], head, in_channels)
