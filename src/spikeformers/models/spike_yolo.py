"""SpikeYOLO, an object detector of integer-valued neurons.

YOLOv8's plan with the blocks of Meta-SpikeFormer: four convolutional stages, a neck that carries
coarse maps down to fine ones and back up, and a head that reads three of them. Potentials add in
every block, and a neuron stands in front of every convolution. Training emits integers 0..4, which
inference spreads over as many binary steps: little is lost where a single bit would be too coarse.

Paper: Luo et al., "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for
High-performance and Energy-efficient Object Detection", ECCV 2024, arXiv:2407.20708.
Code: BICLab/SpikeYOLO, AGPL-3.0; so are the weights published there.
"""

from collections.abc import Callable, Mapping, Sequence
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
from spikeformers.models._official import Dead, Official, join, register_official
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


def _from_graph(
    *,
    depth: float,
    width: float,
    nc: int = 80,
    max_channels: int = 1024,
    last_block_ratio: int = 1,
) -> Mapping[str, Any]:
    """Translate the multiples by which the official graph is scaled."""
    if width <= 0 or width * 16 % 1:
        raise ConfigError(f"width={width}: expected a multiple of 1/16, so that widths are of 8")
    if max_channels < 1024:
        raise ConfigError(f"max_channels={max_channels}: the joints of the graph fit from 1024 on")
    return dict(
        dims=[int(base * width) for base in (128, 256, 512, 1024)],
        depths=[max(1, round(base * depth)) for base in (3, 6, 9, 3)],
        num_classes=nc,
        last_expansion=last_block_ratio,
    )


_SYNAPSE = {"lif": "neuron", "conv": "conv.conv", "bn": "conv.norm"}
_SEPARABLE = {
    "Conv.lif1": "mixer.neuron",
    "Conv.pwconv1": "mixer.fn.expand.conv",
    "Conv.bn1": "mixer.fn.expand.norm",
    "Conv.lif2": "mixer.fn.neuron1",
    "Conv.dwconv2": "mixer.fn.depthwise.conv",
    "Conv.bn2": "mixer.fn.depthwise.norm",
    "Conv.lif3": "mixer.fn.neuron2",
    "Conv.pwconv3.body.0.bn": "mixer.fn.project.border_norm",
    "Conv.pwconv3.body.1.0": "mixer.fn.project.pointwise",
    "Conv.pwconv3.body.1.1": "mixer.fn.project.depthwise",
    "Conv.bn3": "mixer.fn.project.norm",
}
_ALL_CONV = {
    **_SEPARABLE,
    "conv1.lif": "mlp.neuron",
    "conv1.conv": "mlp.fn.expand.conv",
    "conv1.bn": "mlp.fn.expand.norm",
    "conv2.lif": "mlp.fn.neuron",
    "conv2.conv": "mlp.fn.project.conv",
    "conv2.bn": "mlp.fn.project.norm",
}
_REP_CONV = {
    **_SEPARABLE,
    "lif1": "mlp.neuron",
    "bn1": "mlp.fn.expand.norm",
    "lif2": "mlp.fn.neuron",
    "bn2": "mlp.fn.project.norm",
    **join(
        {"conv1.body": "mlp.fn.expand", "conv2.body": "mlp.fn.project"},
        {
            "0": "pointwise1",
            "1.bn": "border_norm",
            "2.0": "depthwise",
            "2.1": "pointwise2",
            "2.2": "inner_norm",
        },
    ),
}


def _stages(model: nn.Module) -> dict[str, str]:
    """Map the blocks of the stages: the official graph gives a lone block no index."""
    modules: dict[str, str] = {}
    for i in range(4):
        theirs, ours = f"model.{2 * i + 2}", f"stages.{i}.blocks"
        lone = len(list(model.get_submodule(ours).children())) == 1
        block = {theirs: f"{ours}.0"} if lone else {f"{theirs}.{{i}}": f"{ours}.{{i}}"}
        modules |= join(block, _ALL_CONV if i < 2 else _REP_CONV)
    return modules


def _bins(model: nn.Module) -> dict[str, tuple[int, ...]]:
    predict = model.get_submodule("head.predict")
    assert isinstance(predict, DetectionHead)
    return {"model.26.dfl.conv.weight": (1, predict.bins, 1, 1)}


register_official(
    Official(
        architecture="spike_yolo",
        file="BICLab/SpikeYOLO/ultralytics/nn/modules/yolo_spikformer.py",
        callables={"snn_yolov8": {}},
        arguments=_from_graph,
        ignored=("T",),
        modules={
            **join(
                {f"model.{2 * i + 1}": f"stages.{i}.embed" for i in range(4)},
                {"encode_lif": "neuron", "encode_conv": "conv.conv", "encode_bn": "conv.norm"},
            ),
            **join(
                {
                    "model.9.cv1": "head.neck.pyramid.reduce",
                    "model.9.cv2": "head.neck.pyramid.merge",
                    "model.10": "head.neck.reduce5",
                    "model.14": "head.neck.reduce4",
                    "model.18": "head.neck.reduce3",
                    "model.20": "head.neck.shrink3",
                    "model.23": "head.neck.shrink4",
                },
                _SYNAPSE,
            ),
            **join(
                {"model.16": "head.neck.down3.0", "model.19": "head.neck.out3.0"},
                _ALL_CONV,
            ),
            **join(
                {
                    "model.12": "head.neck.down4.0",
                    "model.22": "head.neck.out4.0",
                    "model.25": "head.neck.out5.0",
                },
                _REP_CONV,
            ),
            **join(
                {
                    "model.26.cv2.{i}": "head.predict.boxes.{i}",
                    "model.26.cv3.{i}": "head.predict.classes.{i}",
                },
                {
                    "0.lif": "neuron1",
                    "0.conv": "conv1.conv",
                    "0.bn": "conv1.norm",
                    "1.lif": "neuron2",
                    "1.conv": "conv2.conv",
                    "1.bn": "conv2.norm",
                    "2.lif": "neuron3",
                    "2.conv": "conv3",
                },
            ),
        },
        modules_of=_stages,
        dead={
            "model.26.dfl.conv.weight": Dead(
                "the numbers 0, 1, ... of the bins, which decode_boxes counts itself",
                _bins,
                fill=lambda shape: torch.arange(shape[1]).view(shape),
            )
        },
    )
)
