"""The official files of Meta-SpikeFormer: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    ClassificationHead,
    DistillationHead,
)
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
    mlp_ratios: int = 4,
    in_channels: int = 2,
    num_classes: int = 11,
    kd: bool = False,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    if mlp_ratios != 4:
        raise ConfigError(f"mlp_ratios={mlp_ratios}: the official conv blocks only run with 4")
    return dict(
        dims=[embed_dim[0] // 2, *embed_dim],
        heads=num_heads,
        in_channels=in_channels,
        num_classes=num_classes,
        head=DistillationHead if kd else ClassificationHead,
    )


def _size(*embed_dim: int) -> dict[str, Any]:
    return dict(embed_dim=embed_dim, num_heads=8, in_channels=3, num_classes=1000)


_REP_CONV = {
    "0.body.0": "pointwise1",
    "0.body.1.bn": "border_norm",
    "0.body.2.0": "depthwise",
    "0.body.2.1": "pointwise2",
    "0.body.2.2": "inner_norm",
    "1": "norm",
}
_CONV_BLOCK = {
    "Conv.lif1": "mixer.neuron",
    "Conv.pwconv1": "mixer.fn.expand.conv",
    "Conv.bn1": "mixer.fn.expand.norm",
    "Conv.lif2": "mixer.fn.neuron",
    "Conv.dwconv": "mixer.fn.depthwise",
    "Conv.pwconv2": "mixer.fn.project.conv",
    "Conv.bn2": "mixer.fn.project.norm",
    **channel_conv("lif"),
}
_ATTN_BLOCK = {
    **attention_neurons("lif"),
    **join({f"attn.{x}_conv": f"attn.fn.{x}.synapse" for x in "qkv"}, _REP_CONV),
    **join({"attn.proj_conv": "attn.fn.proj"}, _REP_CONV),
    **channel_mlp("lif"),
}

register_official(
    Official(
        architecture="meta_spikeformer",
        file="BICLab/Spike-Driven-Transformer-V2/classification/models.py",
        callables={
            "Spiking_vit_MetaFormer": {},
            "metaspikformer_8_384": _size(96, 192, 384, 480),
            "metaspikformer_8_512": _size(128, 256, 512, 640),
            "metaspikformer_8_768": _size(192, 384, 768, 960),
        },
        arguments=_from_constructor,
        ignored=(*METAFORMER_IGNORED, "drop_path_rate", "depths", "sr_ratios"),
        modules={
            **embeddings("lif"),
            **join(CONV_BLOCKS, _CONV_BLOCK),
            **join(ATTN_BLOCKS, _ATTN_BLOCK),
            "lif": "head.neuron",
            "head": "head.linear",
            "head_kd": "head.linear_kd",
        },
        axes={"*.mlp.fc?_conv.weight": 3},
    )
)
