"""What the authors' constructors of Spikformer and its descendants have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import Blocks
from spikeformers.models._backbone import Stage
from spikeformers.models._official import Dead


def vit_arguments(
    layout: Mapping[str, Any], defect: Mapping[str, Any] | None = None
) -> Callable[..., Mapping[str, Any]]:
    """Return the translation of their arguments into ours.

    Args:
        layout: Arguments of ours that the file fixes.
        defect: Arguments of ours that reproduce a defect of the file.
    """

    def translate(
        *,
        embed_dims: int,
        num_heads: int,
        mlp_ratios: int,
        depths: int,
        in_channels: int,
        num_classes: int,
        corrected: bool = False,
    ) -> Mapping[str, Any]:
        if mlp_ratios != int(mlp_ratios):
            raise ConfigError(f"mlp_ratios={mlp_ratios}: expected a whole number")
        return dict(
            dim=embed_dims,
            heads=num_heads,
            expansion=int(mlp_ratios),
            depth=depths,
            in_channels=in_channels,
            num_classes=num_classes,
            **layout,
            **({} if corrected else defect or {}),
        )

    return translate


VIT_IGNORED = (
    "img_size_h",
    "img_size_w",
    "patch_size",
    "qkv_bias",
    "qk_scale",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "norm_layer",
    "sr_ratios",
)
"""Arguments that decide nothing: sizes and stride follow from the input and the layers."""


def only_stage(model: nn.Module) -> Stage:
    """Return the stage of a model that has one."""
    stage = model.get_submodule("stages.0")
    assert isinstance(stage, Stage)
    return stage


def _norms_of_blocks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    stage = only_stage(model)
    assert isinstance(stage.blocks, Blocks)
    return {
        f"block.{i}.{norm}.{leaf}": (stage.channels,)
        for i in range(len(stage.blocks))
        for norm in ("norm1", "norm2")
        for leaf in ("weight", "bias")
    }


_REASON = "layer norms that are built and never called"
VIT_DEAD = {"block.*.norm?.*": Dead(_REASON, _norms_of_blocks)}
"""The layer norms of every block."""

PROJ = ("proj", "proj1", "proj2", "proj3", "proj4")
BLOCK = ("block0", "block1", "block2", "block3", "block4")
"""The two ways in which the files name the convolutions of a spiking tokenizer."""


def tokenizer_names(convs: Sequence[str], ours: str) -> dict[str, str]:
    """Map a spiking tokenizer to the one at our path `ours`; a neuron is named by what it feeds."""
    places = ["0.conv", "1.conv", "2.conv", "3.conv", "conv"]
    names = {}
    for i, (conv, place) in enumerate(zip(convs, places, strict=True)):
        names[f"patch_embed.{conv}_conv"] = f"{ours}.{place}.conv"
        names[f"patch_embed.{conv}_bn"] = f"{ours}.{place}.norm"
        if i > 0:
            names[f"patch_embed.{conv}_lif"] = f"{ours}.{i - 1}.neuron"
    return names


ATTN_BRANCH = {
    "proj_lif": "neuron",
    **{f"{x}_conv": f"fn.{x}.synapse.linear" for x in "qkv"},
    **{f"{x}_bn": f"fn.{x}.synapse.norm" for x in "qkv"},
    **{f"{x}_lif": f"fn.{x}.neuron" for x in "qkv"},
    "attn_lif": "fn.neuron",
    "proj_conv": "fn.proj.linear",
    "proj_bn": "fn.proj.norm",
}
"""A branch of neuron and self-attention."""

MLP_BRANCH = {
    "mlp1_lif": "neuron",
    "mlp1_conv": "fn.expand.linear",
    "mlp1_bn": "fn.expand.norm",
    "mlp2_lif": "fn.neuron",
    "mlp2_conv": "fn.project.linear",
    "mlp2_bn": "fn.project.norm",
}
"""A branch of neuron and MLP."""
