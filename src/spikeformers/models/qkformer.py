"""QKFormer, a hierarchical spiking transformer with Q-K attention.

Full self-attention costs too much on fine maps, so the early stages do without values and products:
the sum of a head's queries makes one bit per token, which lets the token's keys pass or not. Only
the last, coarse stage has spiking self-attention. Between the stages, patch embeddings have a
shortcut of spikes like all other parts.

Paper: Zhou et al., "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", NeurIPS 2024,
arXiv:2403.16552.
Code: zhouchenlin2096/QKFormer, without licence; so are the weights published there.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    QKTA,
    SPEDS,
    SSA,
    Chain,
    ChannelMLP,
    event_stem,
    image_stem,
    sew,
    small_image_stem,
)
from spikeformers.models._backbone import Backbone
from spikeformers.models._pyramid import pyramid
from spikeformers.models._registry import register
from spikeformers.neurons import LIF, AcrossBatch, NeuronFactory

CIFAR: dict[str, Any] = dict(stem=small_image_stem, embed_strides=(1, 2))
EVENTS: dict[str, Any] = dict(stem=event_stem, embed_strides=(1, 2))


@register(
    "qkformer",
    variants={
        "10_384": dict(dims=(96, 192, 384), heads=6),
        "10_512": dict(dims=(128, 256, 512), heads=8),
        "10_768": dict(dims=(192, 384, 768), heads=12),
        "cifar_4_384": dict(
            dims=(96, 192, 384), depths=(1, 1, 2), heads=8, num_classes=10, **CIFAR
        ),
        "cifar10dvs_2_256": dict(
            dims=(128, 256),
            depths=(1, 1),
            heads=16,
            expansion=1,
            in_channels=2,
            num_classes=10,
            **EVENTS,
        ),
        "gesture_2_256": dict(
            dims=(128, 256), depths=(1, 1), heads=16, in_channels=2, num_classes=11, **EVENTS
        ),
        # A small size of our own, for images of 32x32 pixels.
        "xs32": dict(dims=(24, 48, 96), depths=(1, 1, 1), heads=4, num_classes=10, **CIFAR),
        "tiny": dict(dims=(8, 12, 16), depths=(1, 1, 1), heads=4, num_classes=10),
    },
)
def qkformer(
    *,
    dims: Sequence[int],
    depths: Sequence[int] = (1, 2, 7),
    heads: int,
    expansion: int = 4,
    ssa_stages: int = 1,
    stem: Callable[..., SPEDS] = image_stem,
    embed_strides: Sequence[int] = (2, 1),
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
    attention: Callable[..., nn.Module] = QKTA,
    across_batch: bool = False,
) -> Backbone:
    """Build a QKFormer.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        heads: Attention heads; they divide all widths.
        expansion: Widening of the MLP.
        ssa_stages: How many of the last stages have full self-attention.
        stem: Makes the first embedding: `image_stem`, `small_image_stem` or `event_stem`.
        embed_strides: Strides of the convolutions of every later embedding.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.
        attention: Attention of the other stages: `QKTA` or `QKCA`.
        across_batch: Whether the neuron behind self-attention scans the samples of a batch as if
            they were time steps; see the deviations.

    Raises:
        ConfigError: If `dims` and `depths` differ in length, or `ssa_stages` is larger.
        InputError: If `heads` does not divide a width.

    Deviations:
        The official code hands the neuron behind self-attention time and batch as one axis, so the
        samples of a batch influence each other. Here they do not, except with `across_batch`, which
        weights loaded by `from_official` get unless `corrected` is set: they were trained and
        measured that way. At a batch of one there is no difference.

        Its drop path is never called; here there is none.

    Reference:
        Zhou et al., NeurIPS 2024, arXiv:2403.16552.
    """
    if not 0 <= ssa_stages <= len(dims):
        raise ConfigError(f"ssa_stages={ssa_stages}: expected 0 to {len(dims)}, at most all stages")

    def qk_block(dim: int) -> dict[str, nn.Module]:
        attn = attention(dim, heads, neuron=neuron)
        return dict(attn=sew(Chain(fn=attn, neuron=neuron())), mlp=mlp(dim))

    def ssa_block(dim: int) -> dict[str, nn.Module]:
        attn = SSA(dim, heads, neuron=neuron)
        last = AcrossBatch(neuron()) if across_batch else neuron()
        return dict(attn=sew(Chain(fn=attn, neuron=last)), mlp=mlp(dim))

    def mlp(dim: int) -> nn.Module:
        return sew(Chain(fn=ChannelMLP(dim, expansion, neuron), neuron=neuron()))

    blocks = [qk_block] * (len(dims) - ssa_stages) + [ssa_block] * ssa_stages
    return pyramid(dims, depths, blocks, stem, embed_strides, in_channels, num_classes, neuron)
