"""The official files of MSViT: their arguments and names, and ours."""

from spikeformers.models._official import Official, register_official
from spikeformers.models.msvit import CIFAR, CIFAR100
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

register_official(
    Official(
        architecture="msvit",
        file="Nanhu-AI-Lab/MSViT/imagenet/msformer.py",
        callables={
            "hierarchical_spiking_transformer": {},
            "MSFormer_10_384": imagenet_size(384, 6),
            "MSFormer_10_512": imagenet_size(512, 8),
            "MSFormer_10_768": imagenet_size(768, 12),
        },
        arguments=qk_arguments((2, 2, 1), leading=(1, 2)),
        ignored=QK_IGNORED,
        modules=qk_modules(IMAGE_STEM, DOWNSAMPLING, DOWNSAMPLING, attn="attn", mlp="fc", p="conv"),
        axes=QK_AXES,
    )
)

for data, layout, p in (("cifar10", CIFAR, "conv"), ("cifar100", CIFAR100, "linear")):
    register_official(
        Official(
            architecture="msvit",
            file=f"Nanhu-AI-Lab/MSViT/{data}/model.py",
            callables={"spiking_transformer": {}},
            arguments=qk_arguments((2, 2, 1), leading=(1, 1), heads=8, **layout),
            ignored=QK_IGNORED,
            modules=qk_modules(SMALL_IMAGE_STEM, DOWNSAMPLING, DOWNSAMPLING, p=p),
            axes=QK_AXES,
        )
    )
