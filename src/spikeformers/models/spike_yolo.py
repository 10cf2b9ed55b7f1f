"""SpikeYOLO, an object detector of integer-valued neurons.

YOLOv8's plan with the blocks of Meta-SpikeFormer: four convolutional stages, a neck that carries
coarse maps down to fine ones and back up, and a head that reads three of them. Potentials add in
every block, and a neuron stands in front of every convolution. Training emits integers 0..4, which
inference spreads over as many binary steps: little is lost where a single bit would be too coarse.

Paper: Luo et al., "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for
High-performance and Energy-efficient Object Detection", ECCV 2024, arXiv:2407.20708.
Code: BICLab/SpikeYOLO, AGPL-3.0; so are the weights published there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    Additive,
    Branch,
    Chain,
    ChannelConv,
    ConvBN,
    DetectionHead,
    NormFirstRepConv,
    PerStep,
    RepConv,
    SpikeSepConv,
    Trunk,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import ILIF, NeuronFactory


def _block(dim: int, channel_mixer: ChannelConv, neuron: NeuronFactory) -> dict[str, Branch]:
    """Return the parts of a block: mix neighbouring pixels, then channels."""
    mixer = SpikeSepConv(dim, neuron=neuron, project=NormFirstRepConv)
    return dict(mixer=Branch(neuron(), mixer), mlp=Branch(neuron(), channel_mixer))


def all_conv_block(dim: int, *, neuron: NeuronFactory) -> dict[str, Branch]:
    """Return the parts of a block for fine maps: few channels, full 3x3 convolutions."""
    return _block(dim, ChannelConv(dim, neuron=neuron), neuron)


def rep_conv_block(dim: int, expansion: int, *, neuron: NeuronFactory) -> dict[str, Branch]:
    """Return the parts of a block for coarse maps: many channels, re-parameterised convolutions."""
    return _block(dim, ChannelConv(dim, expansion, neuron, RepConv), neuron)


class SPPF(Additive, nn.Module):
    """Spatial pyramid pooling: membranes and their maxima over 5, 9 and 13 pixels, joined.

    Reference:
        He et al., "Spatial Pyramid Pooling", ECCV 2014, arXiv:1406.4729.
    """

    def __init__(self, dim: int, neuron: NeuronFactory) -> None:
        super().__init__()
        self.reduce = Chain(neuron=neuron(), conv=ConvBN(dim, dim // 2, 1))
        self.pool = PerStep(nn.MaxPool2d(5, stride=1, padding=2))
        self.merge = Chain(neuron=neuron(), conv=ConvBN(2 * dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, C, H, W]`."""
        scales = [self.reduce(x)]
        for _ in range(3):
            scales.append(self.pool(scales[-1]))
        return self.merge(torch.cat(scales, 2))


class Neck(Additive, nn.Module):
    """Carry coarse maps down to the finer ones, and back up: each one then sees all scales.

    Reference:
        Liu et al., "Path Aggregation Network", CVPR 2018, arXiv:1803.01534.
    """

    def __init__(
        self, fine: int, middle: int, coarse: int, last_expansion: int, neuron: NeuronFactory
    ) -> None:
        super().__init__()

        def synapse(width: int, dim: int, kernel_size: int, stride: int = 1) -> Chain:
            return Chain(neuron=neuron(), conv=ConvBN(width, dim, kernel_size, stride))

        self.pyramid = SPPF(coarse, neuron)
        self.reduce5 = synapse(coarse, middle, 1)
        self.down4 = Trunk([rep_conv_block(middle, 3, neuron=neuron)])
        self.reduce4 = synapse(2 * middle, fine, 1)
        self.down3 = Trunk([all_conv_block(fine, neuron=neuron)])
        self.reduce3 = synapse(2 * fine, fine, 1)
        self.out3 = Trunk([all_conv_block(fine, neuron=neuron)])
        self.shrink3 = synapse(fine, fine, 3, 2)
        self.out4 = Trunk([rep_conv_block(2 * fine, 3, neuron=neuron)])
        self.shrink4 = synapse(2 * fine, middle, 3, 2)
        self.out5 = Trunk([rep_conv_block(2 * middle, last_expansion, neuron=neuron)])
        self.channels = [fine, 2 * fine, 2 * middle]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of all stages -> maps `[T, B, channels[i], H/s, W/s]`, strides s = 8, 16, 32."""
        *_, c3, c4, c5 = maps
        r5 = self.reduce5(self.pyramid(c5))
        r4 = self.reduce4(torch.cat([self.down4(enlarge(r5, c4)), c4], 2))
        r3 = self.reduce3(torch.cat([self.down3(enlarge(r4, c3)), c3], 2))
        p3 = self.out3(r3)
        p4 = self.out4(torch.cat([self.shrink3(p3), r4], 2))
        p5 = self.out5(torch.cat([self.shrink4(p4), r5], 2))
        return [p3, p4, p5]


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Repeat pixels until the map is as large as another one."""
    return F.interpolate(x.flatten(0, 1), like.shape[3:]).unflatten(0, x.shape[:2])


class Detector(Backbone):
    """Stages, and a head that reads the maps of all of them and returns a list of maps."""

    def read(self, maps: list[Tensor]) -> Any:
        """Return the head's maps `[T, B, 4*bins + K, H/s, W/s]`, without head the last stage's."""
        return maps[-1] if self.head is None else self.head(maps)

    def readout(self, y: Any) -> Any:
        """Return the mean of every map over time; `decode_boxes` reads boxes from them."""
        return [x.mean(0) for x in y]


@register(
    "spike_yolo",
    variants={
        "n": dict(dims=(48, 96, 192, 384), depths=(1, 2, 3, 1)),
        "s": dict(dims=(64, 128, 256, 512), depths=(1, 2, 3, 1)),
        "m": dict(dims=(80, 160, 320, 640), depths=(2, 3, 4, 2), last_expansion=2),
        "l": dict(dims=(96, 192, 384, 768), depths=(2, 3, 4, 2), last_expansion=2),
        "tiny": dict(dims=(4, 4, 8, 8), depths=(1, 1, 2, 1), bins=2, num_classes=10),
    },
)
def spike_yolo(
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    last_expansion: int = 1,
    in_channels: int = 3,
    num_classes: int | None = 80,
    bins: int = 16,
    neuron: NeuronFactory = ILIF,
) -> Detector:
    """Build a SpikeYOLO.

    Args:
        dims: Widths of the four stages.
        depths: Their blocks.
        last_expansion: Widening of the hidden layer in the neck's last block.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone, without neck.
        bins: Distances that a side of a box can have; see `DetectionHead`.
        neuron: Makes all neurons.

    Raises:
        ConfigError: If there are not four stages, or the last width is odd.

    Deviations:
        Image sizes need not be multiples of 32: coarse maps are enlarged to the size of fine ones.
        The maps are not averaged over time: `readout` does that.

    Reference:
        Luo et al., ECCV 2024, arXiv:2407.20708, sec. 4 and the published configuration.
    """
    if not len(dims) == len(depths) == 4:
        raise ConfigError(f"dims={dims}, depths={depths}: expected one entry for each of 4 stages")
    if dims[-1] % 2:
        raise ConfigError(f"dims={dims}: the pyramid halves the last width, so it must be even")
    stem = Chain(conv=ConvBN(in_channels, dims[0], 7, 4, bias=True, padding=2))
    embeds = [stem] + [
        Chain(neuron=neuron(), conv=ConvBN(width, dim, 3, 2, bias=True))
        for width, dim in pairwise(dims)
    ]
    blocks: Sequence[Callable[..., dict[str, Branch]]] = (
        all_conv_block,
        all_conv_block,
        partial(rep_conv_block, expansion=3),
        partial(rep_conv_block, expansion=2),
    )
    trunks = [
        Trunk([block(dim, neuron=neuron) for _ in range(depth)])
        for block, dim, depth in zip(blocks, dims, depths, strict=True)
    ]
    stages = map(Stage, embeds, trunks, dims, (4, 2, 2, 2))
    if num_classes is None:
        return Detector(stages, None, in_channels)
    _, fine, middle, coarse = dims
    neck = Neck(fine, middle, coarse, last_expansion, neuron)
    head = DetectionHead(neck.channels, num_classes, bins, neuron)
    return Detector(stages, Chain(neck=neck, predict=head), in_channels)
