"""The official files of E-SpikeFormer, base sizes: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.official._metaformer import (
    ATTN_BLOCKS,
    CONV_BLOCKS,
    METAFORMER_IGNORED,
    attention_neurons,
    channel_conv,
    channel_mlp,
    embeddings,
)


def _from_constructor(
    *,
    embed_dim: Sequence[int],
    num_heads: int,
    mlp_ratios: int,
    depths: int,
    in_channels: int = 2,
    num_classes: int = 11,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    if depths < 6:
        raise ConfigError(f"depths={depths}: the official constructor fails below 6, and uses 6")
    return dict(
        dims=[embed_dim[0] // 2, *embed_dim],
        heads=num_heads,
        expansion=mlp_ratios,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def _size(*embed_dim: int) -> dict[str, Any]:
    return dict(
        embed_dim=embed_dim, num_heads=8, mlp_ratios=4, depths=8, in_channels=3, num_classes=1000
    )


_SEP_CONV = {
    "spike1": "neuron",
    "pwconv1.0": "fn.expand.conv",
    "pwconv1.1": "fn.expand.norm",
    "spike2": "fn.neuron1",
    "dwconv.0": "fn.depthwise.conv",
    "dwconv.1": "fn.depthwise.norm",
    "spike3": "fn.neuron2",
    "pwconv2.0": "fn.project.conv",
    "pwconv2.1": "fn.project.norm",
}
_LINEAR_BN = {"0": "linear", "1": "norm"}

register_official(
    Official(
        architecture="sdt_v3",
        file="BICLab/Spike-Driven-Transformer-V3/SDT_V3/Classification/Model_Base/models.py",
        callables={
            "Spiking_vit_MetaFormer_Spike_SepConv": {},
            "Efficient_Spiking_Transformer_t": _size(24, 48, 96, 128),
            "Efficient_Spiking_Transformer_s": _size(32, 64, 128, 192),
            "Efficient_Spiking_Transformer_m": _size(48, 96, 192, 240),
            "Efficient_Spiking_Transformer_l": _size(64, 128, 256, 360),
        },
        arguments=_from_constructor,
        ignored=(*METAFORMER_IGNORED, "drop_path_rate", "sr_ratios"),
        modules={
            **embeddings("spike"),
            **join(CONV_BLOCKS, {**join({"Conv": "mixer"}, _SEP_CONV), **channel_conv("spike")}),
            **join(
                ATTN_BLOCKS,
                {
                    **join({"conv": "mixer"}, _SEP_CONV),
                    **attention_neurons("spike"),
                    **join({f"attn.{x}_conv": f"attn.fn.{x}.synapse" for x in "qkv"}, _LINEAR_BN),
                    **join({"attn.proj_conv": "attn.fn.proj"}, _LINEAR_BN),
                    **channel_mlp("spike"),
                },
            ),
            "spike": "head.neuron",
            "head": "head.linear",
        },
        axes={"*.attn.*_conv.0.weight": 4, "*.mlp.fc?_conv.weight": 3},
    )
)
