"""What the authors' files of QKFormer and MSViT have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spikeformers.errors import ConfigError
from spikeformers.models._official import join
from spikeformers.models.official._vit import VIT_IGNORED

# Names of an embedding's convolutions -> their places in `SPEDS`.
IMAGE_STEM = {"proj": "lead.0", "proj1": "body.fn.0", "proj2": "body.fn.1"}
SMALL_IMAGE_STEM = {"proj": "lead.0", "proj1": "body.fn.0"}
DOWNSAMPLING = {"proj3": "body.fn.0", "proj4": "body.fn.1"}

QK_IGNORED = (*VIT_IGNORED, "T")
QK_AXES = {"*.mlp.*_conv.weight": 4, "stage*_conv.weight": 3}


def qk_arguments(
    divisors: Sequence[int], leading: Sequence[int] = (), **layout: Any
) -> Callable[..., Mapping[str, Any]]:
    """Return the translation of a file's arguments into ours.

    Args:
        divisors: By how much each stage is narrower than `embed_dims`.
        leading: Blocks of all stages but the last, which has the rest of `depths`.
        layout: Arguments of ours that the file fixes, whatever it is given.
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
        if depths < sum(leading):
            raise ConfigError(f"depths={depths}: expected {sum(leading)} blocks or more")
        return dict(
            dims=[embed_dims // divisor for divisor in divisors],
            depths=[*leading, depths - sum(leading)],
            heads=num_heads,
            expansion=int(mlp_ratios),
            in_channels=in_channels,
            num_classes=num_classes,
            across_batch=not corrected,
        ) | dict(layout)

    return translate


def imagenet_size(embed_dims: int, num_heads: int) -> Mapping[str, int]:
    """Return the arguments of a published size for ImageNet; all have ten blocks."""
    return dict(
        embed_dims=embed_dims,
        num_heads=num_heads,
        mlp_ratios=4,
        depths=10,
        in_channels=3,
        num_classes=1000,
    )


def qk_modules(
    *embeds: Mapping[str, str],
    attn: str = "ssa",
    mlp: str = "mlp",
    p: str | None = None,
) -> dict[str, str]:
    """Map the modules of a file.

    Args:
        embeds: For each stage, the names of its embedding's convolutions -> places in `SPEDS`.
        attn: Name of the attention in the last stage.
        mlp: Name of an MLP's maps, without the number.
        p: Our name of the map in the further branch of MSViT's token attention.
    """
    modules = {"head": "head.linear"}
    token_block = _block("tssa", {"q": "linear", "k": "linear", **({"p": p} if p else {})}, mlp)
    last_block = _block(attn, dict.fromkeys("qkv", "linear"), mlp)
    for i, convs in enumerate(embeds):
        places = {**convs, "proj_res": "body.shortcut"}
        embed = _layers({x: (f"{y}.conv.conv", f"{y}.neuron") for x, y in places.items()})
        block = last_block if i == len(embeds) - 1 else token_block
        modules |= join({f"patch_embed{i + 1}": f"stages.{i}.embed"}, embed)
        modules |= join({f"stage{i + 1}.{{i}}": f"stages.{i}.blocks.{{i}}"}, block)
    return modules


def _block(attn: str, branches: Mapping[str, str], mlp: str) -> dict[str, str]:
    inner = "attn.fn.fn"
    places = {
        f"{attn}.{x}": (f"{inner}.{x}.synapse.{kind}", f"{inner}.{x}.neuron")
        for x, kind in branches.items()
    }
    places[f"{attn}.proj"] = (f"{inner}.proj.linear", "attn.fn.neuron")
    places[f"mlp.{mlp}1"] = ("mlp.fn.fn.expand.linear", "mlp.fn.fn.neuron")
    places[f"mlp.{mlp}2"] = ("mlp.fn.fn.project.linear", "mlp.fn.neuron")
    return {**_layers(places), f"{attn}.attn_lif": f"{inner}.neuron"}


def _layers(places: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Map their conv, bn and lif to the map of a synapse, its norm, and the neuron behind it."""
    names: dict[str, str] = {}
    for theirs, (ours, neuron) in places.items():
        norm = f"{ours.rpartition('.')[0]}.norm"
        names |= {f"{theirs}_conv": ours, f"{theirs}_bn": norm, f"{theirs}_lif": neuron}
    return names
