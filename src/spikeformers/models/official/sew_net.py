"""The official files of the SEW gesture nets: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.sew_net import GESTURE_7B


def _from_constructor(
    *,
    connect_f: str,
    num_classes: int = 11,
    layer_list: Sequence[Mapping[str, Any]] | None = None,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructors."""
    if connect_f not in ("ADD", "AND", "IAND"):
        raise ConfigError(f"connect_f={connect_f!r}: expected 'ADD', 'AND' or 'IAND'")
    dims = GESTURE_7B["dims"] if layer_list is None else [layer["channels"] for layer in layer_list]
    stage = dict(
        channels=dims[0],
        up_kernel_size=1,
        mid_channels=dims[0],
        num_blocks=1,
        block_type="sew",
        k_pool=2,
    )
    for layer in layer_list or ():
        if layer != stage:
            raise ConfigError(f"layer_list has {layer}: expected {stage} throughout")
    return {**GESTURE_7B, "dims": dims, "num_classes": num_classes, "connect": connect_f.lower()}


_SPIKING = {"0.0": "synapse.conv", "0.1": "synapse.norm", "1": "neuron"}

register_official(
    Official(
        architecture="sew_net",
        file="fangwei123456/Spike-Element-Wise-ResNet/dvsgesture/smodels.py",
        callables={"ResNetN": {}, "SEWResNet": {}},
        arguments=_from_constructor,
        modules={
            **join({"conv.0": "stages.0.embed"}, _SPIKING),
            # Blocks and pools take turns in one list.
            **join(
                {
                    f"conv.{2 * stage + 1}.conv.{i}": f"stages.{stage}.blocks.block.fn.{i}"
                    for stage in range(7)
                    for i in range(2)
                },
                _SPIKING,
            ),
            "out": "head.linear",
        },
        axes={"*.w": 1},
    )
)
