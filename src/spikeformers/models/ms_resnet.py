"""MS-ResNet, residual learning on membrane potentials.

Every block fires first: neuron, convolution, neuron, convolution. What the shortcut carries and the
sum adds are membrane potentials, so blocks can be the identity at any depth and only spikes meet
weights, except in the shortcuts that change the width. A block starts as the identity: the gain of
its last norm is zero.

Paper: Hu et al., "Advancing Spiking Neural Networks toward Deep Residual Learning", TNNLS 2024,
arXiv:2112.08954.
Code: Ariande1/MS-ResNet, without licence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    BatchNorm,
    Chain,
    ClassificationHead,
    Conv,
    ConvBN,
    PerStep,
    Residual,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import LIF, Neuron, NeuronFactory

_V_THRESHOLD = 0.5

MSLIF = partial(
    LIF,
    tau=4 / 3,
    decay_input=False,
    v_threshold=_V_THRESHOLD,
    surrogate="rectangle",
    strict=True,
)
"""`h = v/4 + x`, spike at `h > 1/2`."""


@part
def small_kernels_stem(in_channels: int, dim: int) -> nn.Module:
    """Three 3x3 convolutions with nothing between them, the first with stride 2."""
    return Chain(
        Conv(in_channels, dim, 3, stride=2, padding=1),
        Conv(dim, dim, 3, padding=1),
        ConvBN(dim, dim, 3, bias=True),
    )


@part
def pooled_shortcut(width: int, dim: int) -> nn.Module:
    """A mean over 2x2 pixels, then a 1x1 convolution."""
    pool = nn.AvgPool2d(2, ceil_mode=True)  # odd maps shrink as under a stride of 2
    return Chain(pool=PerStep(pool), conv=ConvBN(width, dim, 1))


class FiringHead(ClassificationHead):
    """Neuron at every pixel, spatial mean of the spikes, dropout, linear classifier.

    Args:
        dim: Channels.
        num_classes: Classes K.
        neuron: Makes the neuron.
        dropout: Probability of dropping a channel in training, from all steps of a sample.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.
    """

    def __init__(
        self, dim: int, num_classes: int, neuron: Callable[[], Neuron], dropout: float
    ) -> None:
        super().__init__(dim, num_classes, neuron)
        self.dropout = nn.Dropout(dropout)

    def spikes(self, x: Tensor) -> Tensor:
        """Return the share of firing pixels, `[T, B, C]`."""
        rates = self.neuron(x).mean((-2, -1))
        return rates * self.dropout(torch.ones_like(rates[0])) if self.training else rates


_STRIDED_1X1 = partial(ConvBN, kernel_size=1, stride=2)
_STRIDED_7X7 = partial(ConvBN, kernel_size=7, stride=2)
RESNET_104: dict[str, Any] = dict(stem=small_kernels_stem, shortcut=pooled_shortcut, dropout=0.2)


@register(
    "ms_resnet",
    variants={
        "18": dict(depths=(2, 2, 2, 2)),
        "34": dict(depths=(3, 4, 6, 3)),
        "104": dict(depths=(3, 8, 32, 8), **RESNET_104),
        "tiny": dict(dims=(8, 12, 16), depths=(1, 2, 1), num_classes=10),
    },
)
def ms_resnet(
    *,
    depths: Sequence[int],
    dims: Sequence[int] = (64, 128, 256, 512),
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = MSLIF,
    stem: Callable[[int, int], nn.Module] = _STRIDED_7X7,
    shortcut: Callable[[int, int], nn.Module] = _STRIDED_1X1,
    dropout: float = 0.0,
) -> Backbone:
    """Build an MS-ResNet.

    Args:
        depths: Blocks of each stage; the first one halves the map.
        dims: Width of each stage; the stem has that of the first.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.
        stem: Halves the image, without a neuron.
        shortcut: Leads around the first block of a stage.
        dropout: Probability of dropping a channel in front of the classifier.

    Raises:
        ConfigError: If `dims` and `depths` differ in length.

    Reference:
        Hu et al., TNNLS 2024, arXiv:2112.08954.
    """
    if len(dims) != len(depths):
        raise ConfigError(
            f"dims and depths must have one entry per stage, got {len(dims)} and {len(depths)}"
        )

    def body(width: int, dim: int, stride: int = 1) -> nn.Module:
        conv1, conv2 = ConvBN(width, dim, 3, stride), ConvBN(dim, dim, 3)
        nn.init.zeros_(conv2.norm.weight)
        return Chain(neuron1=neuron(), conv1=conv1, neuron2=neuron(), conv2=conv2)

    stages: list[Stage] = []
    embed, width = stem(in_channels, dims[0]), dims[0]
    for dim, depth in zip(dims, depths, strict=True):
        first = Residual(body(width, dim, stride=2), shortcut(width, dim))
        blocks = [first, *[Residual(body(dim, dim)) for _ in range(depth - 1)]]
        stages.append(Stage(embed, Chain(*blocks), dim, stride=2 if stages else 4))
        embed, width = nn.Identity(), dim
    head = None if num_classes is None else FiringHead(width, num_classes, neuron, dropout)
    model = Backbone(stages, head, in_channels)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            # Currents start as large as the threshold, and those at zero stay there.
            module.weight.data.mul_(_V_THRESHOLD)
    return model
