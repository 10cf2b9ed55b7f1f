"""The official files of Spike-driven Transformer (V1): their arguments and names, and ours."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    SDSA1,
)
from spikeformers.models._official import Dead, Official, join, register_official
from spikeformers.models.official._vit import VIT_IGNORED
from spikeformers.models.sdt import EVENTS, FRAMES
from spikeformers.neurons import LIF, PLIF


def _from_constructor(
    *,
    embed_dims: int,
    depths: int,
    num_heads: int = 8,
    mlp_ratios: int | float = 4,
    in_channels: int = 2,
    num_classes: int = 11,
    pooling_stat: str = "1111",
    spike_mode: str = "lif",
    dvs_mode: bool = False,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    neurons = {"lif": LIF, "plif": PLIF}
    if spike_mode not in neurons:
        raise ConfigError(f"spike_mode={spike_mode!r}: expected 'lif' or 'plif'")
    if len(pooling_stat) != 4 or not {*pooling_stat} <= {"0", "1"}:
        raise ConfigError(f"pooling_stat={pooling_stat!r}: expected four characters of 0 or 1")
    if mlp_ratios != int(mlp_ratios):
        raise ConfigError(f"mlp_ratios={mlp_ratios}: expected a whole number")
    return dict(
        dim=embed_dims,
        depth=depths,
        heads=num_heads,
        expansion=int(mlp_ratios),
        strides=[1 + int(pools) for pools in pooling_stat],
        in_channels=in_channels,
        num_classes=num_classes,
        neuron=neurons[spike_mode],
        attention=EVENTS if dvs_mode else FRAMES,
    )


def _talking_heads(model: nn.Module) -> dict[str, tuple[int, ...]]:
    attentions = [m for m in model.modules() if isinstance(m, SDSA1)]
    return {
        f"block.{i}.attn.talking_heads.weight": (attn.heads, attn.heads, 1)
        for i, attn in enumerate(attentions)
    }


def _time_constants(model: nn.Module) -> dict[str, tuple[int, ...]]:
    if not any(isinstance(m, PLIF) for m in model.modules()):
        return {}
    depth = len(_talking_heads(model))
    keys = ["patch_embed.rpe_lif.w", *(f"block.{i}.attn.attn_lif.w" for i in range(depth))]
    return dict.fromkeys(keys, ())


def _mlps(model: nn.Module) -> dict[str, str]:
    """Name the MLPs; where they are as wide as the trunk, their halves are two branches."""
    narrow = any(name.endswith("mlp1") for name, _ in model.named_modules())
    return join({"block.{i}.mlp": "stages.0.blocks.{i}"}, _NARROW_MLP if narrow else _MLP)


_SPLIT = "stages.0.embed"
_MLP = {
    "fc1_lif": "mlp.neuron",
    "fc1_conv": "mlp.fn.expand.linear",
    "fc1_bn": "mlp.fn.expand.norm",
    "fc2_lif": "mlp.fn.neuron",
    "fc2_conv": "mlp.fn.project.linear",
    "fc2_bn": "mlp.fn.project.norm",
}
_NARROW_MLP = {
    "fc1_lif": "mlp1.neuron",
    "fc1_conv": "mlp1.fn.linear",
    "fc1_bn": "mlp1.fn.norm",
    "fc2_lif": "mlp2.neuron",
    "fc2_conv": "mlp2.fn.linear",
    "fc2_bn": "mlp2.fn.norm",
}
_UNUSED_NEURON = Dead("the neuron is constructed and never runs", _time_constants)

register_official(
    Official(
        architecture="sdt",
        file="BICLab/Spike-Driven-Transformer/model/spikeformer.py",
        callables={"SpikeDrivenTransformer": {}},
        arguments=_from_constructor,
        ignored=(*VIT_IGNORED, "T", "attn_mode", "get_embed", "TET", "cml"),
        modules={
            **{f"patch_embed.proj_conv{i or ''}": f"{_SPLIT}.conv{i + 1}.conv" for i in range(4)},
            **{f"patch_embed.proj_bn{i or ''}": f"{_SPLIT}.conv{i + 1}.norm" for i in range(4)},
            **{f"patch_embed.proj_lif{i or ''}": f"{_SPLIT}.neuron{i + 1}" for i in range(3)},
            "patch_embed.proj_lif3": "stages.0.blocks.0.position.neuron",
            "patch_embed.rpe_conv": "stages.0.blocks.0.position.fn.conv",
            "patch_embed.rpe_bn": "stages.0.blocks.0.position.fn.norm",
            **join(
                {"block.{i}": "stages.0.blocks.{i}"},
                {
                    "attn.shortcut_lif": "attn.neuron",
                    **{f"attn.{x}_conv": f"attn.fn.{x}.synapse.linear" for x in "qkv"},
                    **{f"attn.{x}_bn": f"attn.fn.{x}.synapse.norm" for x in "qkv"},
                    **{f"attn.{x}_lif": f"attn.fn.{x}.neuron" for x in "qkv"},
                    "attn.talking_heads_lif": "attn.fn.neuron",
                    "attn.proj_conv": "attn.fn.proj.linear",
                    "attn.proj_bn": "attn.fn.proj.norm",
                },
            ),
            "head_lif": "head.neuron",
            "head": "head.linear",
        },
        modules_of=_mlps,
        axes={"block.*_conv.weight": 4},
        dead={
            "block.*.attn.talking_heads.weight": Dead(
                "the convolution over heads is constructed and never called", _talking_heads
            ),
            "patch_embed.rpe_lif.w": _UNUSED_NEURON,
            "block.*.attn.attn_lif.w": _UNUSED_NEURON,
        },
    )
)
