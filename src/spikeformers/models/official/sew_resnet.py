"""The official files of SEW-ResNet and its baseline: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.sew_resnet import AND, BASIC, BOTTLENECK, IAND, sew_block

_CONNECT = {"ADD": sew_block, "AND": AND, "IAND": IAND}


def _sew_arguments(
    *, block: str, layers: Sequence[int], connect_f: str, num_classes: int = 1000
) -> Mapping[str, Any]:
    """Translate the arguments of the official SEW-ResNet."""
    if block not in ("BasicBlock", "Bottleneck"):
        raise ConfigError(f"block={block!r}: expected 'BasicBlock' or 'Bottleneck'")
    if connect_f not in _CONNECT:
        raise ConfigError(f"connect_f={connect_f!r}: expected 'ADD', 'AND' or 'IAND'")
    size = BASIC if block == "BasicBlock" else BOTTLENECK
    return dict(**size, depths=layers, num_classes=num_classes, block=_CONNECT[connect_f])


def _spiking_arguments(
    *, block: str, layers: Sequence[int], num_classes: int = 1000
) -> Mapping[str, Any]:
    """Translate the arguments of the official Spiking ResNet."""
    if block != "BasicBlock":
        raise ConfigError(f"block={block!r}: expected 'BasicBlock', the only one with a key map")
    return dict(**BASIC, depths=layers, num_classes=num_classes)


_CONV = {"0": "conv", "1": "norm"}
_STEM_AND_HEAD = {
    "conv1": "stages.0.embed.conv.stem.conv",
    "bn1": "stages.0.embed.conv.stem.norm",
    "sn1": "stages.0.embed.neuron",
    "fc": "head.linear",
}
_STAGES = {f"layer{i + 1}.{{i}}": f"stages.{i}.blocks.{{i}}" for i in range(4)}

register_official(
    Official(
        architecture="sew_resnet",
        file="fangwei123456/Spike-Element-Wise-ResNet/imagenet/sew_resnet.py",
        callables={"SEWResNet": {}},
        arguments=_sew_arguments,
        ignored=("T", "zero_init_residual"),
        modules={
            **_STEM_AND_HEAD,
            **join(
                _STAGES,
                {
                    **join({f"conv{i + 1}": f"fn.{i}.synapse" for i in range(3)}, _CONV),
                    **{f"sn{i + 1}": f"fn.{i}.neuron" for i in range(3)},
                    **join({"downsample.0": "shortcut.synapse"}, _CONV),
                    "downsample.1": "shortcut.neuron",
                },
            ),
        },
    )
)
register_official(
    Official(
        architecture="spiking_resnet",
        file="fangwei123456/Spike-Element-Wise-ResNet/imagenet/spiking_resnet.py",
        callables={"SpikingResNet": {}},
        arguments=_spiking_arguments,
        ignored=("T", "zero_init_residual"),
        modules={
            **_STEM_AND_HEAD,
            **join(
                _STAGES,
                {
                    **join({"conv1": "fn.0.synapse", "conv2": "fn.1"}, _CONV),
                    "sn1": "fn.0.neuron",
                    "sn2": "neuron",
                    **join({"downsample": "shortcut"}, _CONV),
                },
            ),
        },
    )
)
