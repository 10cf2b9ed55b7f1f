"""7B-Net, the small SEW networks for event streams.

Seven SEW blocks, each followed by a max pool that halves the map of spikes. Nothing strides: the
shortcut is the identity throughout, and the pools carry spikes to spikes. The neurons learn their
time constants.

Paper: Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021,
arXiv:2102.04159.
Code: fangwei123456/Spike-Element-Wise-ResNet, MPL-2.0.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from spikeformers.layers import Chain, ClassificationHead, ConvBN, PerStep, sew, spiking
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import PLIF, NeuronFactory

_PLIF = partial(PLIF, surrogate="atan")
GESTURE_7B: dict[str, Any] = dict(dims=(32,) * 7, in_channels=2, num_classes=11)


@register(
    "sew_net",
    variants={
        "7b": GESTURE_7B,
        "wide_7b": dict(dims=(64,) * 4 + (128,) * 3, in_channels=2, num_classes=10),
        "tiny": dict(dims=(8, 8, 12), num_classes=10),
    },
)
def sew_net(
    *,
    dims: Sequence[int],
    in_channels: int = 3,
    num_classes: int | None = 10,
    neuron: NeuronFactory = _PLIF,
    connect: str = "add",
) -> Backbone:
    """Build a SEW network of one block and one pool per stage.

    Args:
        dims: Width of each stage; a spiking 1x1 convolution leads where it changes.
        in_channels: Channels of the input; events have one per polarity.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.
        connect: Joins body and shortcut: "add" gives integers, "and" and "iand" stay binary.

    Raises:
        InputError: If `connect` is none of the three.

    Deviations:
        The official head flattens the last map, which ties it to one image size. Here it averages
        the map, which is the same where the map is one pixel: at 128x128 with seven stages.

    Reference:
        Fang et al., NeurIPS 2021, arXiv:2102.04159: 7B-Net for DVS128 Gesture and Wide-7B-Net for
        CIFAR10-DVS.
    """
    stages: list[Stage] = []
    width = in_channels
    for dim in dims:
        widens = not stages or width != dim
        embed = spiking(ConvBN(width, dim, 1), neuron()) if widens else nn.Identity()
        body = Chain(*[spiking(ConvBN(dim, dim, 3), neuron()) for _ in range(2)])
        blocks = Chain(block=sew(body, connect), pool=PerStep(nn.MaxPool2d(2)))
        stages.append(Stage(embed, blocks, dim, stride=2))
        width = dim
    # The blocks hand over spikes already.
    head = None if num_classes is None else ClassificationHead(width, num_classes, nn.Identity)
    return Backbone(stages, head, in_channels)
