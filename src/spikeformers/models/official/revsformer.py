"""The official files of RevSFormer: their arguments and names, and ours."""

from spikeformers.layers import (
    TwiceCountingTrunk,
)
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.official._vit import (
    ATTN_BRANCH,
    BLOCK,
    MLP_BRANCH,
    PROJ,
    VIT_IGNORED,
    tokenizer_names,
    vit_arguments,
)
from spikeformers.models.revsformer import CIFAR, EVENTS

_BLOCKS = "block.reversible_blocks.{i}"

for file, layout, convs in (
    ("cifar10", CIFAR, BLOCK),
    ("cifar100", CIFAR, BLOCK),
    ("cifar10-dvs", EVENTS, PROJ),
    ("dvs128-gesture", EVENTS, PROJ),
):
    register_official(
        Official(
            architecture="revsformer",
            file=f"mi804/RevSNN/{file}/revmodel.py",
            callables={"rev_vit_snn": {}},
            arguments=vit_arguments(layout, defect=dict(trunk=TwiceCountingTrunk)),
            ignored=(*VIT_IGNORED, "T"),
            modules={
                **tokenizer_names(convs, "stages.0.embed.tokenizer"),
                **join({f"{_BLOCKS}.f_block": "stages.0.blocks.{i}.attn"}, ATTN_BRANCH),
                **join({f"{_BLOCKS}.g_block": "stages.0.blocks.{i}.mlp"}, MLP_BRANCH),
                "head": "head.linear",
            },
            axes={"*.f_block.*_conv.weight": 3, "*.g_block.*_conv.weight": 4},
        )
    )
