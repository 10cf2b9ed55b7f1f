"""The official files of MS-ResNet: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.ms_resnet import RESNET_104


def _resnet_18(*, num_block: Sequence[int], num_classes: int, block: str) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor of ResNet-18 and 34."""
    if block != "BasicBlock_18":
        raise ConfigError(f"block={block!r}: expected 'BasicBlock_18'")
    return dict(depths=num_block, num_classes=num_classes)


def _resnet_104(*, num_block: Sequence[int], num_classes: int, block: str) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor of ResNet-104."""
    if block != "BasicBlock_104":
        raise ConfigError(f"block={block!r}: expected 'BasicBlock_104'")
    return dict(depths=num_block, num_classes=num_classes, **RESNET_104)


_FILE = "Ariande1/MS-ResNet/models/MS_ResNet.py"
_BLOCKS = {f"conv{i + 2}_x.{{i}}": f"stages.{i}.blocks.{{i}}" for i in range(4)}
_BLOCKS_AND_HEAD = {
    **join(
        join(_BLOCKS, {"residual_function": "fn"}),
        {
            "0": "neuron1",
            "1": "conv1.conv",
            "2.bn": "conv1.norm",
            "3": "neuron2",
            "4": "conv2.conv",
            "5.bn": "conv2.norm",
        },
    ),
    "mem_update": "head.neuron",
    "fc": "head.linear",
}

register_official(
    Official(
        architecture="ms_resnet",
        file=_FILE,
        callables={"ResNet_origin_18": {}},
        arguments=_resnet_18,
        modules={
            "conv1.0": "stages.0.embed.conv",
            "conv1.1.bn": "stages.0.embed.norm",
            **join(
                join(_BLOCKS, {"shortcut": "shortcut"}),
                {"0": "conv", "1.bn": "norm"},
            ),
            **_BLOCKS_AND_HEAD,
        },
    )
)
register_official(
    Official(
        architecture="ms_resnet",
        file=_FILE,
        callables={"ResNet_104": {}},
        arguments=_resnet_104,
        modules={
            "conv1.0": "stages.0.embed.0",
            "conv1.1": "stages.0.embed.1",
            "conv1.2": "stages.0.embed.2.conv",
            "conv1.3.bn": "stages.0.embed.2.norm",
            **join(
                join(_BLOCKS, {"shortcut": "shortcut.conv"}),
                {"1": "conv", "2.bn": "norm"},
            ),
            **_BLOCKS_AND_HEAD,
        },
    )
)
