"""E-SpikeFormer, the spike-driven transformer V3, in its base sizes.

Neurons emit integers in one step, which a chip plays as so many binary spikes (spike firing
approximation): they remember nothing, so time is a mere batch axis here. Meta-SpikeFormer's layout
stays, but a neuron stands in front of every convolution, queries, keys and values come from plain
linear maps with values four times as wide, and a convolution leads each attention block.

Paper: Yao et al., "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
Training", T-PAMI 2025, arXiv:2411.16061.
Code: BICLab/Spike-Driven-Transformer-V3, without licence; so are the weights published there.
"""

import math
from collections.abc import Sequence
from functools import partial

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    SSA,
    Branch,
    Chain,
    ChannelConv,
    ChannelMLP,
    ClassificationHead,
    ConvBN,
    LinearBN,
    SpikeSepConv,
    Trunk,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import ILIF, NeuronFactory

SFA = partial(ILIF, decay=0.0, scale=0.25)  # spike firing approximation, four levels
UNDIVIDED = partial(ILIF, decay=0.0)

STRIDES = (2, 2, 2, 2, 1)
CONV_STAGES = 3


@register(
    "sdt_v3",
    variants={
        "3m": dict(dims=(12, 24, 48, 96, 128)),
        "5m": dict(dims=(16, 32, 64, 128, 192)),
        "10m": dict(dims=(24, 48, 96, 192, 240)),
        "19m": dict(dims=(32, 64, 128, 256, 360)),
        "tiny": dict(dims=(8, 8, 8, 16, 16), depths=(1, 1, 1, 1, 1), heads=4, num_classes=10),
    },
)
def sdt_v3(
    *,
    dims: Sequence[int],
    depths: Sequence[int] = (1, 1, 2, 6, 2),
    heads: int = 8,
    expansion: int = 4,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = SFA,
    head_neuron: NeuronFactory = UNDIVIDED,
) -> Backbone:
    """Build an E-SpikeFormer of base size.

    Args:
        dims: Width of each of the five stages; three have conv blocks, two have attention blocks.
        depths: Blocks of each stage.
        heads: Attention heads.
        expansion: Widening of the hidden layer where channels are mixed.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons but the last. For D levels: `partial(ILIF, levels=D, decay=0.0,
            scale=1 / D)`.
        head_neuron: Makes the neuron before the classifier, whose integers are not divided.

    Raises:
        ConfigError: If there are not five `dims` and `depths`.

    Deviations:
        The official code takes images without time; here each step is such an image.

    Reference:
        Yao et al., T-PAMI 2025, arXiv:2411.16061.
    """
    if not len(dims) == len(depths) == len(STRIDES):
        raise ConfigError(
            f"dims and depths must have one entry for each of the five stages, got {len(dims)} "
            f"and {len(depths)}"
        )

    def conv_block(dim: int) -> dict[str, Branch]:
        return dict(
            mixer=Branch(neuron(), SpikeSepConv(dim, 7, neuron)),
            mlp=Branch(neuron(), ChannelConv(dim, expansion, neuron)),
        )

    def attn_block(dim: int) -> dict[str, Branch]:
        attention = SSA(
            dim,
            heads,
            neuron,
            proj=LinearBN,
            scale=2 / math.sqrt(dim / heads),
            v_threshold=None,
            value_expansion=4,
        )
        return dict(
            mixer=Branch(neuron(), SpikeSepConv(dim, 3, neuron)),
            attn=Branch(neuron(), attention),
            mlp=Branch(neuron(), ChannelMLP(dim, expansion, neuron)),
        )

    stages = []
    width = in_channels
    for i, (dim, depth, stride) in enumerate(zip(dims, depths, STRIDES, strict=True)):
        conv = ConvBN(width, dim, 7 if i == 0 else 3, stride, bias=True)
        # The stem sees the image, so no neuron leads it.
        embed = Chain(conv=conv) if i == 0 else Chain(neuron=neuron(), conv=conv)
        block = conv_block if i < CONV_STAGES else attn_block
        stages.append(Stage(embed, Trunk([block(dim) for _ in range(depth)]), dim, stride))
        width = dim
    head = None if num_classes is None else ClassificationHead(width, num_classes, head_neuron)
    return Backbone(stages, head, in_channels)
