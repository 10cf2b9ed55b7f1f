"""Meta-SpikeFormer, the spike-driven transformer V2.

Two convolutional stages of growing width, then two stages of spike-driven self-attention; every
residual stream adds membrane potentials, and every neuron stands in front of the convolution or
product that its spikes drive. The block types, the attention operator and the shortcut are meant
to be exchanged.

Paper: Yao et al., "Spike-driven Transformer V2: Meta Spiking Neural Network Architecture Inspiring
the Design of Next-generation Neuromorphic Chips", ICLR 2024, arXiv:2404.03663.
Code: BICLab/Spike-Driven-Transformer-V2, without licence; so are the weights published there.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    SDSA1,
    SDSA2,
    SDSA3,
    SDSA4,
    Blocks,
    Branch,
    Chain,
    ChannelConv,
    ChannelMLP,
    ClassificationHead,
    ConvBN,
    SepConv,
    Synapse,
    Trunk,
    sew,
    vanilla,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import LIF, NeuronFactory

Bodies = list[dict[str, nn.Module]]
"""The blocks of a stage before a shortcut is put around them: name -> body."""


@part
def membrane_shortcut(
    conv: ConvBN, bodies: Bodies, neuron: NeuronFactory, is_stem: bool
) -> tuple[nn.Module, nn.Module]:
    """Neurons lead: membrane potentials add. The stem sees the image, so no neuron leads it."""
    embed = Chain(conv=conv) if is_stem else Chain(neuron=neuron(), conv=conv)
    return embed, Trunk([{k: Branch(neuron(), fn) for k, fn in b.items()} for b in bodies])


@part
def sew_shortcut(
    conv: ConvBN, bodies: Bodies, neuron: NeuronFactory, is_stem: bool
) -> tuple[nn.Module, nn.Module]:
    """Neurons trail: spikes add to spikes and become integers."""
    del is_stem
    blocks = [{k: sew(Chain(fn=fn, neuron=neuron())) for k, fn in b.items()} for b in bodies]
    return Chain(conv=conv, neuron=neuron()), Blocks(blocks)


@part
def vanilla_shortcut(
    conv: ConvBN, bodies: Bodies, neuron: NeuronFactory, is_stem: bool
) -> tuple[nn.Module, nn.Module]:
    """Neurons stand behind the sum of spikes and current."""
    del is_stem
    blocks = [{k: vanilla(fn, neuron()) for k, fn in b.items()} for b in bodies]
    return Chain(conv=conv, neuron=neuron()), Blocks(blocks)


_31M = dict(dims=(48, 96, 192, 384, 480))
_SMALL = dict(token_mixer=partial(SepConv, kernel_size=3), stem_kernel=3, norm_gain=1.5)


@register(
    "meta_spikeformer",
    variants={
        "15m": dict(dims=(32, 64, 128, 256, 360)),
        "31m": _31M,
        "55m": dict(dims=(64, 128, 256, 512, 640)),
        "124m": dict(dims=(96, 192, 384, 768, 960)),
        # The paper's studies, each one change to the 31M model.
        "31m_sdsa1": dict(**_31M, attention=SDSA1),
        "31m_sdsa2": dict(**_31M, attention=SDSA2),
        "31m_sdsa4": dict(**_31M, attention=SDSA4),
        "31m_sew": dict(**_31M, shortcut=sew_shortcut),
        "31m_vanilla": dict(**_31M, shortcut=vanilla_shortcut),
        "31m_mlp": dict(**_31M, channel_mixer=ChannelMLP),
        "31m_allconv": dict(**_31M, conv_stages=5),
        "31m_allattn": dict(**_31M, conv_stages=0),
        "31m_2conv": dict(**_31M, conv_stages=2),
        "31m_4conv": dict(**_31M, conv_stages=4),
        # Small sizes of our own, for images of 32x32 and 64x64 pixels.
        "xs32": dict(
            dims=(16, 32, 64), depths=(1, 1, 2), strides=(2, 2, 2), conv_stages=2, **_SMALL
        ),
        "s32": dict(
            dims=(32, 64, 128), depths=(1, 2, 3), strides=(1, 2, 2), conv_stages=2, **_SMALL
        ),
        "s64": dict(
            dims=(24, 48, 96, 128),
            depths=(1, 1, 3, 1),
            strides=(2, 2, 2, 1),
            conv_stages=2,
            **_SMALL,
        ),
        "tiny": dict(dims=(8, 8, 16, 16, 24), depths=(1, 1, 1, 1, 1), heads=4, num_classes=10),
    },
)
def meta_spikeformer(
    *,
    dims: Sequence[int],
    depths: Sequence[int] = (1, 1, 2, 6, 2),
    strides: Sequence[int] = (2, 2, 2, 2, 1),
    conv_stages: int = 3,
    heads: int = 8,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    stem_kernel: int = 7,
    norm_gain: float = 1.0,
    neuron: NeuronFactory = LIF,
    token_mixer: Callable[..., nn.Module] = SepConv,
    channel_mixer: Callable[..., nn.Module] = ChannelConv,
    attention: Callable[..., nn.Module] = SDSA3,
    shortcut: Callable[..., tuple[nn.Module, nn.Module]] = membrane_shortcut,
    head: Callable[..., nn.Module] = ClassificationHead,
) -> Backbone:
    """Build a Meta-SpikeFormer.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        strides: Stride of each stage's embedding.
        conv_stages: How many leading stages have conv blocks; the others have attention blocks.
        heads: Attention heads.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        stem_kernel: Side of the first convolution.
        norm_gain: Initial weight of the norm in front of each neuron or sum. Small networks start
            nearly silent with 1.
        neuron: Makes all neurons.
        token_mixer: First part of a conv block.
        channel_mixer: Second part of a conv block.
        attention: First part of an attention block.
        shortcut: Puts neurons and residual sums around the parts of a stage.
        head: Makes the classification head; `DistillationHead` has a second one for a teacher.

    Raises:
        ConfigError: If `dims`, `depths` and `strides` differ in length.

    Deviations:
        The official code constructs drop path and never calls it; here there is none.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, table 1.
    """
    if not len(dims) == len(depths) == len(strides):
        raise ConfigError(
            f"dims, depths and strides must have one entry per stage, got {len(dims)}, "
            f"{len(depths)} and {len(strides)}"
        )

    def conv_block(dim: int) -> dict[str, nn.Module]:
        return dict(mixer=token_mixer(dim, neuron=neuron), mlp=channel_mixer(dim, neuron=neuron))

    def attn_block(dim: int) -> dict[str, nn.Module]:
        return dict(attn=attention(dim, heads, neuron=neuron), mlp=ChannelMLP(dim, neuron=neuron))

    stages = []
    width = in_channels
    for i, (dim, depth, stride) in enumerate(zip(dims, depths, strides, strict=True)):
        conv = ConvBN(width, dim, stem_kernel if i == 0 else 3, stride, bias=True)
        block = conv_block if i < conv_stages else attn_block
        embed, blocks = shortcut(conv, [block(dim) for _ in range(depth)], neuron, is_stem=i == 0)
        stages.append(Stage(embed, blocks, dim, stride))
        width = dim
    # A trunk hands potentials to the head; the other shortcuts hand it spikes already.
    fires = neuron if isinstance(stages[-1].blocks, Trunk) else nn.Identity
    top = None if num_classes is None else head(width, num_classes, neuron=fires)
    model = Backbone(stages, top, in_channels)
    for module in model.modules():
        if isinstance(module, Synapse):
            nn.init.constant_(module.norm.weight, norm_gain)
    return model
