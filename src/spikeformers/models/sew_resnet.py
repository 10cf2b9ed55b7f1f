"""SEW-ResNet, residual learning with spike-element-wise shortcuts, and its baseline.

A ResNet whose every convolution drives a neuron. In a Spiking ResNet the last neuron of a block
fires on the sum of shortcut and current, so a block can hardly hand its spikes on unchanged, and
deep networks stop learning. SEW puts that neuron before the shortcut and joins spikes with spikes:
a silent body (or, with AND, one that always fires) makes a block the identity.

Paper: Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021,
arXiv:2102.04159.
Code: fangwei123456/Spike-Element-Wise-ResNet, MPL-2.0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    Chain,
    ClassificationHead,
    ConvBN,
    PerStep,
    Synapse,
    once,
    sew,
    spiking,
    vanilla,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import IF, NeuronFactory

Convs = Sequence[Synapse]
"""The convolutions of a block before neurons and a shortcut are put around them."""


@part
def basic_body(width: int, dim: int, stride: int) -> Convs:
    """Two 3x3 convolutions."""
    return [ConvBN(width, dim, 3, stride), ConvBN(dim, dim, 3)]


@part
def bottleneck_body(width: int, dim: int, stride: int) -> Convs:
    """A 3x3 convolution at a quarter of the width, between two 1x1 convolutions."""
    if dim % 4:
        raise ConfigError(f"dims has {dim}: a bottleneck needs a multiple of 4")
    neck = dim // 4
    return [ConvBN(width, neck, 1), ConvBN(neck, neck, 3, stride), ConvBN(neck, dim, 1)]


@part
def sew_block(
    convs: Convs, shortcut: Synapse | None, neuron: NeuronFactory, connect: str = "add"
) -> nn.Module:
    """Every convolution drives a neuron: spikes join spikes."""
    fn = Chain(*[spiking(conv, neuron()) for conv in convs])
    return sew(fn, connect, None if shortcut is None else spiking(shortcut, neuron()))


@part
def vanilla_block(convs: Convs, shortcut: Synapse | None, neuron: NeuronFactory) -> nn.Module:
    """The last neuron stands behind the sum."""
    *inner, last = convs
    fn = Chain(*[spiking(conv, neuron()) for conv in inner], last)
    return vanilla(fn, neuron(), shortcut)


BASIC: dict[str, Any] = dict(dims=(64, 128, 256, 512), body=basic_body)
BOTTLENECK: dict[str, Any] = dict(dims=(256, 512, 1024, 2048), body=bottleneck_body)
_SIZES: dict[str, dict[str, Any]] = {
    "18": dict(**BASIC, depths=(2, 2, 2, 2)),
    "34": dict(**BASIC, depths=(3, 4, 6, 3)),
    "50": dict(**BOTTLENECK, depths=(3, 4, 6, 3)),
    "101": dict(**BOTTLENECK, depths=(3, 4, 23, 3)),
    "152": dict(**BOTTLENECK, depths=(3, 8, 36, 3)),
}
_TINY = dict(dims=(8, 12, 16), depths=(1, 2, 1), stem_dim=8, stem=Chain, num_classes=10)
_IF = partial(IF, surrogate="atan")
AND, IAND = partial(sew_block, connect="and"), partial(sew_block, connect="iand")


@register(
    "sew_resnet",
    variants={
        **_SIZES,
        **{f"{size}_and": dict(**given, block=AND) for size, given in _SIZES.items()},
        **{f"{size}_iand": dict(**given, block=IAND) for size, given in _SIZES.items()},
        "tiny": _TINY,
    },
)
def sew_resnet(
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    stem_dim: int = 64,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = _IF,
    stem: Callable[[nn.Module], nn.Module] = once,
    body: Callable[[int, int, int], Convs] = basic_body,
    block: Callable[[Convs, Synapse | None, NeuronFactory], nn.Module] = sew_block,
) -> Backbone:
    """Build a SEW-ResNet.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        stem_dim: Width of the stem.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.
        stem: Runs the first convolution: `once` for static images, `Chain` at every step.
        body: Makes the convolutions of a block from its widths and its stride.
        block: Puts neurons and a shortcut around them; `sew_block` takes `connect`, see `sew`.

    Raises:
        ConfigError: If `dims` and `depths` differ in length, or a width suits no bottleneck.

    Reference:
        Fang et al., NeurIPS 2021, arXiv:2102.04159, table 1.
    """
    if len(dims) != len(depths):
        raise ConfigError(
            f"dims and depths must have one entry per stage, got {len(dims)} and {len(depths)}"
        )
    conv = stem(ConvBN(in_channels, stem_dim, 7, stride=2))
    pool = PerStep(nn.MaxPool2d(3, stride=2, padding=1))
    embed: nn.Module = Chain(conv=conv, neuron=neuron(), pool=pool)
    stages: list[Stage] = []
    width, stride = stem_dim, 1
    for dim, depth in zip(dims, depths, strict=True):
        shortcut = None if (width, stride) == (dim, 1) else ConvBN(width, dim, 1, stride)
        first = block(body(width, dim, stride), shortcut, neuron)
        others = [block(body(dim, dim, 1), None, neuron) for _ in range(depth - 1)]
        stages.append(Stage(embed, Chain(first, *others), dim, stride if stages else 4))
        embed, width, stride = nn.Identity(), dim, 2
    # The blocks hand over spikes already.
    head = None if num_classes is None else ClassificationHead(width, num_classes, nn.Identity)
    model = Backbone(stages, head, in_channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


@register("spiking_resnet", variants={**_SIZES, "tiny": _TINY})
def spiking_resnet(
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    stem_dim: int = 64,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = _IF,
    stem: Callable[[nn.Module], nn.Module] = once,
    body: Callable[[int, int, int], Convs] = basic_body,
) -> Backbone:
    """Build the baseline, a Spiking ResNet: a SEW-ResNet of `vanilla_block`. Arguments as there."""
    return sew_resnet(
        dims=dims,
        depths=depths,
        stem_dim=stem_dim,
        in_channels=in_channels,
        num_classes=num_classes,
        neuron=neuron,
        stem=stem,
        body=body,
        block=vanilla_block,
    )
