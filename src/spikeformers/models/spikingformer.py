"""Spikingformer, a spiking transformer whose residual stream adds membrane potentials.

Spikformer with the neurons moved to the front of every branch: each convolution but the first sees
binary spikes, and the stream, which no weight ever reads directly, holds potentials. Pooling in
front of the neuron instead of behind it (CML) gives its gradient one definite path.

Paper: Zhou et al., "Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking
Neural Network", 2023, arXiv:2304.11954; CML: Zhou et al., 2023, arXiv:2305.05954.
Code: zhouchenlin2096/Spikingformer and zhouchenlin2096/Spikingformer-CML, Apache-2.0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from spikeformers.layers import (
    SSA,
    Branch,
    Chain,
    ChannelMLP,
    ClassificationHead,
    SpikingTokenizer,
    Trunk,
    fire_then_pool,
    pool_then_fire,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import LIF, NeuronFactory

CIFAR = dict(pools=2)
EVENTS = dict(neuron=partial(LIF, tau=1.5))
CML = dict(downsample=pool_then_fire)
CML_EVENTS = dict(downsample=pool_then_fire, neuron=partial(LIF, tau=1.75))

_FRAMES: dict[str, dict[str, Any]] = {
    "8_384": dict(dim=384, depth=8, heads=8),
    "8_512": dict(dim=512, depth=8, heads=8),
    "8_768": dict(dim=768, depth=8, heads=8),
    "cifar_4_256": dict(dim=256, depth=4, heads=8, num_classes=10, **CIFAR),
    "cifar_2_384": dict(dim=384, depth=2, heads=12, num_classes=10, **CIFAR),
    "cifar_4_384": dict(dim=384, depth=4, heads=12, num_classes=10, **CIFAR),
    # A small size of our own, for images of 32x32 pixels.
    "xs32": dict(dim=80, depth=2, heads=4, num_classes=10, **CIFAR),
}
_CAMERA = dict(dim=256, depth=2, heads=16, in_channels=2, num_classes=10)


@register(
    "spikingformer",
    variants={
        **_FRAMES,
        "events_2_256": dict(**_CAMERA, **EVENTS),
        **{f"cml_{name}": dict(**size, **CML) for name, size in _FRAMES.items()},
        "cml_events_2_256": dict(**_CAMERA, **CML_EVENTS),
        "tiny": dict(dim=16, depth=1, heads=4, pools=2, num_classes=10),
    },
)
def spikingformer(
    *,
    dim: int,
    depth: int,
    heads: int,
    expansion: int = 4,
    pools: int = 4,
    downsample: Callable[..., Chain] = fire_then_pool,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
) -> Backbone:
    """Build a Spikingformer.

    Args:
        dim: Width of the tokens, a multiple of 8.
        depth: Number of blocks.
        heads: Attention heads; they divide `dim`.
        expansion: Widening of the MLP.
        pools: How many of the tokenizer's first four convolutions, the last ones, halve the map.
        downsample: Arranges pooling and neuron: `fire_then_pool`, or `pool_then_fire` (CML).
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.

    Raises:
        InputError: If `dim` is no multiple of 8 and of `heads`, or `pools` is not 0 to 4.

    Deviations:
        The official drop path is never called; here there is none. The official event files take
        128x128 pixels only; here every size fits. As there, no neuron stands in front of the
        classifier: it reads averaged potentials.

    Reference:
        Zhou et al., 2023, arXiv:2304.11954.
    """

    def block() -> dict[str, Branch]:
        attn = SSA(dim, heads, neuron=neuron)
        mlp = ChannelMLP(dim, expansion, neuron=neuron)
        return dict(attn=Branch(neuron(), attn), mlp=Branch(neuron(), mlp))

    embed = SpikingTokenizer(in_channels, dim, pools, downsample, neuron)
    stage = Stage(embed, Trunk([block() for _ in range(depth)]), dim, 2**pools)
    head = None if num_classes is None else ClassificationHead(dim, num_classes, nn.Identity)
    return Backbone([stage], head, in_channels)
