"""The official files of Spikingformer: their arguments and names, and ours."""

from spikeformers.models._official import Official, join, register_official
from spikeformers.models.official._vit import (
    ATTN_BRANCH,
    BLOCK,
    MLP_BRANCH,
    PROJ,
    VIT_DEAD,
    VIT_IGNORED,
    tokenizer_names,
    vit_arguments,
)
from spikeformers.models.spikingformer import CIFAR, CML, CML_EVENTS, EVENTS

_BLOCKS = {
    **join({"block.{i}.attn": "stages.0.blocks.{i}.attn"}, ATTN_BRANCH),
    **join({"block.{i}.mlp": "stages.0.blocks.{i}.mlp"}, MLP_BRANCH),
    "head": "head.linear",
}

# Plain and CML files differ in nothing that a checkpoint shows, but for the names in the CIFAR one.
for file, layout, convs in (
    ("Spikingformer/imagenet", {}, PROJ),
    ("Spikingformer/cifar10", CIFAR, BLOCK),
    ("Spikingformer/cifar10-dvs", EVENTS, PROJ),
    ("Spikingformer/dvs128-gesture", EVENTS, PROJ),
    ("Spikingformer-CML/imagenet", CML, PROJ),
    ("Spikingformer-CML/cifar10", dict(**CIFAR, **CML), PROJ),
    ("Spikingformer-CML/cifar10-dvs", CML_EVENTS, PROJ),
    ("Spikingformer-CML/dvs128-gesture", CML_EVENTS, PROJ),
):
    register_official(
        Official(
            architecture="spikingformer",
            file=f"zhouchenlin2096/{file}/model.py",
            callables={"vit_snn": {}},
            arguments=vit_arguments(layout),
            ignored=(*VIT_IGNORED, "T"),
            modules=tokenizer_names(convs, "stages.0.embed") | _BLOCKS,
            axes={"*.attn.*_conv.weight": 3, "*.mlp.*_conv.weight": 4},
            dead=VIT_DEAD,
        )
    )
