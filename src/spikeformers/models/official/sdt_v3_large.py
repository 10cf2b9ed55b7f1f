"""The official files of E-SpikeFormer, large sizes: their arguments and names, and ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import Dead, Official, join, register_official
from spikeformers.models.official._metaformer import (
    ATTN_BLOCKS,
    CONV_BLOCKS,
    METAFORMER_IGNORED,
    attention_neurons,
    channel_mlp,
    embeddings,
)
from spikeformers.models.sdt_v3_large import (
    MembraneDistillationHead,
    membrane_head,
    rep_attn_block,
    scaled_attn_block,
)


def _from_constructor(
    *,
    embed_dim: Sequence[int],
    choice: str | None = None,
    num_heads: int = 8,
    mlp_ratios: int = 4,
    sr_ratios: int = 1,
    depths: int = 8,
    drop_path_rate: float = 0.1,
    in_channels: int = 3,
    num_classes: int = 1000,
    nb_classes: int = 1000,
    kd: bool = True,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    if len(embed_dim) != 3:
        raise ConfigError(f"embed_dim={embed_dim}: expected three widths")
    if kd and num_classes != nb_classes:
        raise ConfigError(
            f"num_classes={num_classes} and nb_classes={nb_classes} size the two heads: "
            "expected the same"
        )
    return dict(
        dims=[embed_dim[0] // 2, *embed_dim],
        depths=(1, 1, 2, depths),
        heads=num_heads,
        expansion=mlp_ratios,
        value_expansion=sr_ratios,
        drop_path=drop_path_rate,
        in_channels=in_channels,
        num_classes=nb_classes,
        block=rep_attn_block if choice == "base" else scaled_attn_block,
        head=MembraneDistillationHead if kd else membrane_head,
    )


_REP_LINEAR = {
    "conv1.0": "0.linear",
    "conv1.1": "0.norm",
    "conv2.0": "1.linear",
    "conv2.1": "1.norm",
}
_RENORMED = {**join({"0": "synapse"}, _REP_LINEAR), "1": "norm"}

register_official(
    Official(
        architecture="sdt_v3_large",
        file="BICLab/Spike-Driven-Transformer-V3/SDT_V3/Classification/Model_Large/spikformer.py",
        callables={
            "Spikformer": {},
            "spikformer12_512": dict(choice="base", embed_dim=(128, 256, 512), depths=12),
            "spikformer12_768": dict(choice="large", embed_dim=(196, 384, 768), depths=12),
        },
        arguments=_from_constructor,
        ignored=(*METAFORMER_IGNORED, "T", "mlp_ratio"),
        modules={
            **embeddings("lif"),
            **join(
                CONV_BLOCKS,
                {
                    "neuron1": "mlp.neuron",
                    **join({"conv1.0": "mlp.fn.expand"}, {"0": "conv", "1": "norm"}),
                    "neuron2": "mlp.fn.neuron",
                    **join({"conv2.0": "mlp.fn.project"}, {"0": "conv", "1": "norm"}),
                },
            ),
            **join(
                ATTN_BLOCKS,
                {
                    "lif": "rep.neuron",
                    **join({"rep_conv": "rep.fn"}, _REP_LINEAR),
                    **attention_neurons("lif"),
                    **join({f"attn.{x}_conv": f"attn.fn.{x}.synapse" for x in "qkv"}, _RENORMED),
                    **join({"attn.proj_conv": "attn.fn.proj.synapse"}, _RENORMED),
                    "layer_scale1": "attn.fn.proj.gain",
                    **channel_mlp("lif"),
                    "mlp.fc2_conv": "mlp.fn.project.synapse.linear",
                    "mlp.fc2_bn": "mlp.fn.project.synapse.norm",
                    "layer_scale2": "mlp.fn.project.gain",
                },
            ),
            "lif": "head.neuron",
            "head": "head.linear",
            "head_kd": "head.linear_kd",
        },
        axes={"block3.*.conv?.0.weight": 3, "block3.*_conv.weight": 3},
        dead={"lif": Dead("without a second head it fires for nobody", lambda _: {})},
    )
)
