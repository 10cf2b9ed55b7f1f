"""RevSResNet, a spiking residual network whose training memory does not grow with depth.

Two streams of potentials feed each other: `y1 = x1 + F(x2)`, then `y2 = x2 + G(y1)`, where F and G
are two convolutions, a neuron in front of each. The inputs of a block follow from its outputs, so
the backward pass restores them; only what changes the resolution, between the stages, keeps its
input.

Paper: Zhang and Zhang, "Memory-Efficient Reversible Spiking Neural Networks", AAAI 2024,
arXiv:2312.07922.
Code: mi804/RevSNN, Apache-2.0.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    Branch,
    Chain,
    ClassificationHead,
    ConvBN,
    PerStep,
    ReversibleTrunk,
    once,
)
from spikeformers.models._backbone import Backbone, Stage
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
