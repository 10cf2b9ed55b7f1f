"""The official files of SpikeYOLO: their arguments and names, and ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    DetectionHead,
)
from spikeformers.models._official import Dead, Official, join, register_official


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
