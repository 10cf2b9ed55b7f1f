"""The official files of the DSR networks: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.dsr import CIFAR
from spikeformers.neurons import DSRIF, DSRLIF, NeuronFactory


def _neuron(
    neuron_type: str, setting: Mapping[str, Any], threshold_grad: float = 1.0
) -> NeuronFactory:
    """Translate the official settings of the neurons."""
    if neuron_type not in ("if", "lif"):
        raise ConfigError(f"neuron_type={neuron_type!r}: expected 'if' or 'lif'")
    names = dict(Vth="v_threshold", alpha="alpha", Vth_bound="lower_bound")
    if missing := {"train_Vth", "tau", "delta_t", *names} - set(setting):
        raise ConfigError(f"snn_setting lacks {', '.join(sorted(missing))}")
    if not setting["train_Vth"]:
        raise ConfigError("train_Vth=False: expected True, for the thresholds are parameters here")
    shared = {ours: setting[theirs] for theirs, ours in names.items()}
    if neuron_type == "lif":
        shared |= dict(tau=setting["tau"], dt=setting["delta_t"])
    neuron = DSRIF if neuron_type == "if" else DSRLIF
    return partial(neuron, **shared, threshold_grad=threshold_grad)


def _cifar(
    *,
    num_blocks: Sequence[int],
    num_classes: int = 10,
    neuron_type: str,
    snn_setting: Mapping[str, Any],
    block: str = "PreActBlock",
    dropout: float = 0.0,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructors for CIFAR."""
    if block != "PreActBlock":
        raise ConfigError(f"block={block!r}: expected 'PreActBlock'")
    neuron = _neuron(neuron_type, snn_setting)
    return dict(**CIFAR, depths=num_blocks, num_classes=num_classes, neuron=neuron, dropout=dropout)


def _imagenet(
    *,
    layers: Sequence[int],
    num_classes: int = 1000,
    neuron_type: str,
    snn_setting: Mapping[str, Any],
    baseWidth: int = 64,
    bottleneck: bool = False,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructors for ImageNet."""
    if bottleneck:
        raise ConfigError("bottleneck=True: expected False, only basic blocks have a key map")
    dims = [baseWidth * 2**i for i in range(4)]
    neuron = _neuron(neuron_type, snn_setting, threshold_grad=0.001)
    return dict(dims=dims, depths=layers, num_classes=num_classes, neuron=neuron)


def _spiking(theirs: str, ours: str) -> dict[str, str]:
    """Map a neuron and its threshold."""
    return {theirs: ours, f"{theirs}.Vth": f"{ours}.v_threshold"}


_BLOCKS = {f"layer{i + 1}.{{i}}": f"stages.{i}.blocks.{{i}}" for i in range(4)}
_BLOCK = {
    "bn1": "norm.norm",
    **_spiking("relu1", "neuron"),
    "conv1": "sum.fn.conv1.conv",
    "bn2": "sum.fn.conv1.norm",
    **_spiking("relu2", "sum.fn.neuron"),
    "conv2": "sum.fn.conv2",
}

register_official(
    Official(
        architecture="dsr",
        file="qymeng94/DSR/cifar/modules/preresnet.py",
        callables={
            "PreActResNet": {},
            "resnet18_if": dict(num_blocks=(2, 2, 2, 2), neuron_type="if"),
            "resnet18_lif": dict(num_blocks=(2, 2, 2, 2), neuron_type="lif"),
        },
        arguments=_cifar,
        modules={
            "conv1": "stages.0.embed",
            **join(_BLOCKS, {**_BLOCK, "shortcut": "sum.shortcut"}),
            "bn1": "head.norm.norm",
            **_spiking("relu1", "head.neuron"),
            **_spiking("relu2", "head.pooled_neuron"),
            "linear": "head.linear.linear",
            "bn2": "head.linear.norm",
            **_spiking("relu3", "head.score_neuron"),
        },
    )
)
register_official(
    Official(
        architecture="dsr",
        file="qymeng94/DSR/imagenet/preresnet_snn.py",
        callables={
            "PreResNet": {},
            "resnet18_if": dict(layers=(2, 2, 2, 2), neuron_type="if"),
        },
        arguments=_imagenet,
        modules={
            "conv1": "stages.0.embed.conv.conv",
            "bn1": "stages.0.embed.conv.norm",
            **_spiking("relu1", "stages.0.embed.neuron"),
            **join(_BLOCKS, _BLOCK),
            **join(join(_BLOCKS, {"downsample": "sum.shortcut"}), {"0": "conv", "1": "norm"}),
            "bn2": "head.norm.norm",
            **_spiking("relu2", "head.neuron"),
            **_spiking("relu3", "head.pooled_neuron"),
            "fc": "head.linear.linear",
            "bn3": "head.linear.norm",
            **_spiking("relu4", "head.score_neuron"),
        },
    )
)
