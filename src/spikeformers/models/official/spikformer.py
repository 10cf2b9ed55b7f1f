"""The official files of Spikformer: their arguments and names, and ours."""

from torch import nn

from spikeformers.layers import (
    pool_then_fire,
)
from spikeformers.models._official import Dead, Official, join, register_official
from spikeformers.models.official._vit import VIT_DEAD, VIT_IGNORED, only_stage, vit_arguments
from spikeformers.models.spikformer import CIFAR, EVENTS


def _sps(*steps: str) -> dict[str, str]:
    """Map the tokenizer; `steps` name the layers of each, with `*` for their kind."""
    places = {step: str(i) for i, step in enumerate(steps)} | {"rpe_*": "position.fn"}
    kinds = {"conv": "conv.conv", "bn": "conv.norm", "lif": "neuron"}
    return {
        f"patch_embed.{step.replace('*', kind)}": f"stages.0.embed.{place}.{layer}"
        for step, place in places.items()
        for kind, layer in kinds.items()
    }


def _blocks(kind: str) -> dict[str, str]:
    """Map the blocks and the head; `kind` is what the file calls a linear map."""
    places = {
        **{f"attn.{x}": (f"attn.fn.fn.{x}.synapse", f"attn.fn.fn.{x}.neuron") for x in "qkv"},
        "attn.proj": ("attn.fn.fn.proj", "attn.fn.neuron"),
        "mlp.fc1": ("mlp.fn.fn.expand", "mlp.fn.fn.neuron"),
        "mlp.fc2": ("mlp.fn.fn.project", "mlp.fn.neuron"),
    }
    block = {"attn.attn_lif": "attn.fn.fn.neuron"}
    for place, (synapse, neuron) in places.items():
        block[f"{place}_{kind}"] = f"{synapse}.linear"
        block[f"{place}_bn"] = f"{synapse}.norm"
        block[f"{place}_lif"] = neuron
    return {**join({"block.{i}": "stages.0.blocks.{i}"}, block), "head": "head.linear"}


def _event_leftovers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    dim = only_stage(model).channels
    return {"pos_embed": (1, 64, dim), "norm.weight": (dim,), "norm.bias": (dim,)}


_LEFTOVERS = Dead("position embedding and layer norm that are never called", _event_leftovers)
_PROJ = _sps("proj_*", "proj_*1", "proj_*2", "proj_*3")

for official in (
    Official(
        architecture="spikformer",
        file="ZK-Zhou/spikformer/imagenet/model.py",
        callables={"Spikformer": {}},
        arguments=vit_arguments({}),
        ignored=VIT_IGNORED,
        modules=_PROJ | _blocks("conv"),
        axes={"*.attn.*_conv.weight": 3, "*.mlp.*_conv.weight": 4},
        dead=VIT_DEAD,
    ),
    Official(
        architecture="spikformer",
        file="ZK-Zhou/spikformer/cifar10/model.py",
        callables={"Spikformer": {}},
        arguments=vit_arguments(CIFAR),
        ignored=(*VIT_IGNORED, "T"),
        modules=_PROJ | _blocks("linear"),
        dead=VIT_DEAD,
    ),
    Official(
        architecture="spikformer",
        file="ZK-Zhou/spikformer/cifar10dvs/model.py",
        callables={"Spikformer": {}},
        arguments=vit_arguments(EVENTS),
        ignored=VIT_IGNORED,
        modules=_PROJ | _blocks("conv"),
        axes={"block.*_conv.weight": 3},
        dead={**VIT_DEAD, "pos_embed": _LEFTOVERS, "norm.*": _LEFTOVERS},
    ),
    Official(
        architecture="spikformer",
        file="zhouchenlin2096/Spikingformer-CML/cifar10/CML_Spikformer.py",
        callables={"Spikformer": {}},
        arguments=vit_arguments({**CIFAR, "downsample": pool_then_fire}),
        ignored=(*VIT_IGNORED, "T"),
        modules=_sps("block1_*", "block2_*", "block3_*", "block4_*") | _blocks("linear"),
        dead=VIT_DEAD,
    ),
):
    register_official(official)
