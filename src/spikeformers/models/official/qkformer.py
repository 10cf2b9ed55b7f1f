"""The official files of QKFormer: their arguments and names, and ours."""

from spikeformers.models._official import Official, register_official
from spikeformers.models.official._qk import (
    DOWNSAMPLING,
    IMAGE_STEM,
    QK_AXES,
    QK_IGNORED,
    SMALL_IMAGE_STEM,
    imagenet_size,
    qk_arguments,
    qk_modules,
)
from spikeformers.models.qkformer import CIFAR, EVENTS

register_official(
    Official(
        architecture="qkformer",
        file="zhouchenlin2096/QKFormer/imagenet/qkformer.py",
        callables={
            "hierarchical_spiking_transformer": {},
            "QKFormer_10_384": imagenet_size(384, 6),
            "QKFormer_10_512": imagenet_size(512, 8),
            "QKFormer_10_768": imagenet_size(768, 12),
        },
        arguments=qk_arguments((4, 2, 1), leading=(1, 2)),
        ignored=QK_IGNORED,
        modules=qk_modules(IMAGE_STEM, DOWNSAMPLING, DOWNSAMPLING, attn="attn", mlp="fc"),
        axes=QK_AXES,
    )
)

for data in ("cifar10", "cifar100"):
    register_official(
        Official(
            architecture="qkformer",
            file=f"zhouchenlin2096/QKFormer/{data}/model.py",
            callables={"spiking_transformer": {}},
            arguments=qk_arguments((4, 2, 1), leading=(1, 1), heads=8, **CIFAR),
            ignored=QK_IGNORED,
            modules=qk_modules(SMALL_IMAGE_STEM, DOWNSAMPLING, DOWNSAMPLING),
            axes=QK_AXES,
        )
    )
for data in ("cifar10-dvs", "dvs128-gesture"):
    register_official(
        Official(
            architecture="qkformer",
            file=f"zhouchenlin2096/QKFormer/{data}/model.py",
            callables={"vit_snn": {}},
            arguments=qk_arguments((2, 1), depths=(1, 1), heads=16, **EVENTS),
            ignored=QK_IGNORED,
            modules=qk_modules(
                {"proj": "lead.0", "proj1": "lead.1", "proj2": "body.fn.0", "proj3": "body.fn.1"},
                {"proj": "body.fn.0", "proj4": "body.fn.1"},
            ),
            axes=QK_AXES,
        )
    )
