"""RevSResNet, a spiking residual network whose training memory does not grow with depth.

Two streams of potentials feed each other: `y1 = x1 + F(x2)`, then `y2 = x2 + G(y1)`, where F and G
are two convolutions, a neuron in front of each. The inputs of a block follow from its outputs, so
the backward pass restores them; only what changes the resolution, between the stages, keeps its
input.

Paper: Zhang and Zhang, "Memory-Efficient Reversible Spiking Neural Networks", AAAI 2024,
arXiv:2312.07922.
Code: mi804/RevSNN, Apache-2.0.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    Branch,
    Chain,
    ClassificationHead,
    ConvBN,
    PerStep,
    ReversibleTrunk,
    TwiceCountingTrunk,
    once,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._official import Official, join, register_official
from spikeformers.models._registry import register
from spikeformers.neurons import IF, LIF, NeuronFactory

_IF = partial(IF, surrogate="atan")


@register(
    "revsresnet",
    variants={
        "21": dict(depths=(1, 1, 1, 1)),
        "37": dict(depths=(1, 2, 3, 2)),
        "109": dict(depths=(2, 4, 16, 4)),
        # For event frames: other steps, other images, so the stem runs at each.
        "24": dict(
            dims=(16, 32, 48),
            depths=(1, 2, 2),
            in_channels=2,
            stem=Chain,
            neuron=partial(LIF, tau=1.5),
        ),
        "tiny": dict(dims=(4, 8), depths=(2, 1), stem=Chain),
    },
)
def revsresnet(
    *,
    dims: Sequence[int] = (64, 128, 256, 448),
    depths: Sequence[int],
    stem: Callable[[nn.Module], nn.Module] = once,
    trunk: Callable[..., nn.Module] = ReversibleTrunk,
    in_channels: int = 3,
    num_classes: int | None = 10,
    neuron: NeuronFactory = _IF,
) -> Backbone:
    """Build a RevSResNet.

    Args:
        dims: Width of each stream, stage by stage.
        depths: Blocks of each stage.
        stem: Runs the first convolution: `once` for static images, `Chain` at every step.
        trunk: Puts the two streams around the blocks of a stage.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.

    Raises:
        ConfigError: If `dims` and `depths` differ in length.

    Deviations:
        The official backward pass updates the running statistics inside the blocks a second time.
        Here they are updated once; official weights are loaded with a `TwiceCountingTrunk`, which
        does as there, unless `corrected`.

    Reference:
        Zhang and Zhang, AAAI 2024, arXiv:2312.07922.
    """
    if len(dims) != len(depths):
        raise ConfigError(
            f"dims and depths must have one entry per stage, got {len(dims)} and {len(depths)}"
        )

    def branch(dim: int) -> Branch:
        body = Chain(conv1=ConvBN(dim, dim, 3), neuron=neuron(), conv2=ConvBN(dim, dim, 3))
        return Branch(neuron(), body)

    def downsample(narrow: int, wide: int) -> Chain:
        pool = PerStep(nn.AvgPool2d(3, stride=2, padding=1))
        return Chain(neuron=neuron(), pool=pool, conv=ConvBN(2 * narrow, 2 * wide, 1))

    embeds = [stem(ConvBN(in_channels, 2 * dims[0], 3)), *map(downsample, dims, dims[1:])]
    stages: list[Stage] = []
    for embed, dim, depth in zip(embeds, dims, depths, strict=True):
        blocks = trunk([dict(f=branch(dim), g=branch(dim)) for _ in range(depth)])
        stages.append(Stage(embed, blocks, 2 * dim, 2 if stages else 1))
    head = None
    if num_classes is not None:
        classifier = ClassificationHead(2 * dims[-1], num_classes, nn.Identity)
        # The neuron sees every position; what it fires is averaged.
        head = Chain(neuron=neuron(), classifier=classifier)
    return Backbone(stages, head, in_channels)


def _resnet_arguments(
    *,
    layers: Sequence[int],
    planes: Sequence[int],
    num_classes: int,
    corrected: bool = False,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    sizes = dict(dims=planes, depths=layers, num_classes=num_classes)
    return sizes if corrected else {**sizes, "trunk": TwiceCountingTrunk}


_BODY = {
    "sn1": "neuron",
    "conv1.0": "fn.conv1.conv",
    "conv1.1": "fn.conv1.norm",
    "sn2": "fn.neuron",
    "conv2.0": "fn.conv2.conv",
    "conv2.1": "fn.conv2.norm",
}
_PLANES = dict(planes=(64, 128, 256, 448))

for file in ("cifar10", "cifar100"):
    register_official(
        Official(
            architecture="revsresnet",
            file=f"mi804/RevSNN/{file}/revs_resnet.py",
            callables={
                "RevSResNet": {},
                "revs_resnet21": dict(layers=(1, 1, 1, 1), **_PLANES),
                "revs_resnet37": dict(layers=(1, 2, 3, 2), **_PLANES),
                "revs_resnet109": dict(layers=(2, 4, 16, 4), **_PLANES),
            },
            arguments=_resnet_arguments,
            ignored=("block", "T"),
            modules={
                "conv1": "stages.0.embed.stem.conv",
                "bn1": "stages.0.embed.stem.norm",
                **join(
                    {
                        f"layer{n + 1}.reversible_blocks.{{i}}.{f}_block": (
                            f"stages.{n}.blocks.{{i}}.{f}"
                        )
                        for n in range(4)
                        for f in "fg"
                    },
                    _BODY,
                ),
                **join(
                    {f"ds{n}": f"stages.{n}.embed" for n in range(1, 4)},
                    {"0": "neuron", "1.1": "conv.conv", "1.2": "conv.norm"},
                ),
                "sn1": "head.neuron",
                "fc": "head.classifier.linear",
            },
        )
    )
