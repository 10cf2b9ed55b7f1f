"""The official files of RevSResNet: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.layers import (
    TwiceCountingTrunk,
)
from spikeformers.models._official import Official, join, register_official


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
