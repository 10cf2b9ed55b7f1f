"""The tiles that architectures are laid from."""

from spikeformers.layers.attention import SDSA1, SDSA2, SDSA3, SDSA4, SSA, matrix_product, spiking
from spikeformers.layers.heads import ClassificationHead, DistillationHead
from spikeformers.layers.mixers import ChannelConv, ChannelMLP, SepConv
from spikeformers.layers.recompute import recompute
from spikeformers.layers.shortcut import Blocks, Branch, Chain, Trunk, drop_path, sew, vanilla
from spikeformers.layers.synapse import (
    BatchNorm,
    Conv,
    ConvBN,
    Foldable,
    Linear,
    LinearBN,
    PerStep,
    RepConv,
    Synapse,
    fold,
    once,
)

__all__ = [
    "SDSA1",
    "SDSA2",
    "SDSA3",
    "SDSA4",
    "SSA",
    "BatchNorm",
    "Blocks",
    "Branch",
    "Chain",
    "ChannelConv",
    "ChannelMLP",
    "ClassificationHead",
    "Conv",
    "ConvBN",
    "DistillationHead",
    "Foldable",
    "Linear",
    "LinearBN",
    "PerStep",
    "RepConv",
    "SepConv",
    "Synapse",
    "Trunk",
    "drop_path",
    "fold",
    "matrix_product",
    "once",
    "recompute",
    "sew",
    "spiking",
    "vanilla",
]
