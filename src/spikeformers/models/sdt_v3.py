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
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

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
from spikeformers.models._official import Official, join, register_official
from spikeformers.models._official_metaformer import (
    ATTN_BLOCKS,
    CONV_BLOCKS,
    METAFORMER_IGNORED,
    attention_neurons,
    channel_conv,
    channel_mlp,
    embeddings,
)
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


def _from_constructor(
    *,
    embed_dim: Sequence[int],
    num_heads: int,
    mlp_ratios: int,
    depths: int,
    in_channels: int = 2,
    num_classes: int = 11,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    if depths < 6:
        raise ConfigError(f"depths={depths}: the official constructor fails below 6, and uses 6")
    return dict(
        dims=[embed_dim[0] // 2, *embed_dim],
        heads=num_heads,
        expansion=mlp_ratios,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def _size(*embed_dim: int) -> dict[str, Any]:
    return dict(
        embed_dim=embed_dim, num_heads=8, mlp_ratios=4, depths=8, in_channels=3, num_classes=1000
    )


_SEP_CONV = {
    "spike1": "neuron",
    "pwconv1.0": "fn.expand.conv",
    "pwconv1.1": "fn.expand.norm",
    "spike2": "fn.neuron1",
    "dwconv.0": "fn.depthwise.conv",
    "dwconv.1": "fn.depthwise.norm",
    "spike3": "fn.neuron2",
    "pwconv2.0": "fn.project.conv",
    "pwconv2.1": "fn.project.norm",
}
_LINEAR_BN = {"0": "linear", "1": "norm"}

register_official(
    Official(
        architecture="sdt_v3",
        file="BICLab/Spike-Driven-Transformer-V3/SDT_V3/Classification/Model_Base/models.py",
        callables={
            "Spiking_vit_MetaFormer_Spike_SepConv": {},
            "Efficient_Spiking_Transformer_t": _size(24, 48, 96, 128),
            "Efficient_Spiking_Transformer_s": _size(32, 64, 128, 192),
            "Efficient_Spiking_Transformer_m": _size(48, 96, 192, 240),
            "Efficient_Spiking_Transformer_l": _size(64, 128, 256, 360),
        },
        arguments=_from_constructor,
        ignored=(*METAFORMER_IGNORED, "drop_path_rate", "sr_ratios"),
        modules={
            **embeddings("spike"),
            **join(CONV_BLOCKS, {**join({"Conv": "mixer"}, _SEP_CONV), **channel_conv("spike")}),
            **join(
                ATTN_BLOCKS,
                {
                    **join({"conv": "mixer"}, _SEP_CONV),
                    **attention_neurons("spike"),
                    **join({f"attn.{x}_conv": f"attn.fn.{x}.synapse" for x in "qkv"}, _LINEAR_BN),
                    **join({"attn.proj_conv": "attn.fn.proj"}, _LINEAR_BN),
                    **channel_mlp("spike"),
                },
            ),
            "spike": "head.neuron",
            "head": "head.linear",
        },
        axes={"*.attn.*_conv.0.weight": 4, "*.mlp.fc?_conv.weight": 3},
    )
)
