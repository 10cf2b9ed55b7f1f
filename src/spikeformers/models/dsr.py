"""DSR, pre-activation ResNets that differentiate on the spike representation.

What a train of spikes represents is its mean over time, with LIF neurons weighted by age. As a
function of what the currents represent it is almost a clip, and training differentiates that clip:
one gradient per layer, none through time. In every block a norm and a neuron lead, and the shortcut
starts behind them: it carries spikes. The scores are spikes, too.

Paper: Meng et al., "Training High-Performance Low-Latency Spiking Neural Networks by
Differentiation on Spike Representation", CVPR 2022, arXiv:2205.00459.
Code: qymeng94/DSR, without licence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    BatchNorm,
    Chain,
    Conv,
    ConvBN,
    LinearBN,
    PerStep,
    Residual,
    Synapse,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import DSRIF, DSRLIF, NeuronFactory


class Norm(Synapse):
    """The batch norm of a sum, in front of a neuron.

    Args:
        dim: Channels.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, C, H, W]`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = BatchNorm(dim)

    def weigh(self, x: Tensor) -> Tensor:
        """Leave the sum as it is."""
        return x

    def fold(self) -> Conv:
        """Return a weight and a bias per channel."""
        gain, offset = self.norm.affine_map()
        return Conv.of(gain.view(-1, 1, 1, 1), offset, groups=len(gain))


@part
def fine_stem(in_channels: int, dim: int, neuron: NeuronFactory) -> tuple[nn.Module, int]:
    """Keep the size of small images, without norm and neuron. Returns it and its stride."""
    del neuron
    return Conv(in_channels, dim, 3, padding=1, bias=False), 1


@part
def coarse_stem(in_channels: int, dim: int, neuron: NeuronFactory) -> tuple[nn.Module, int]:
    """Shrink large images to a quarter; the pool averages spikes. Returns it and its stride."""
    pool = PerStep(nn.AvgPool2d(3, stride=2, padding=1))
    return Chain(conv=ConvBN(in_channels, dim, 7, stride=2), neuron=neuron(), pool=pool), 4


class SpikingHead(nn.Module):
    """Norm, neuron, spatial mean, neuron, linear classifier with norm, neuron: scores are spikes.

    Args:
        dim: Channels.
        num_classes: Classes K.
        neuron: Makes the neurons.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.
    """

    def __init__(self, dim: int, num_classes: int, neuron: NeuronFactory) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.neuron = neuron()
        self.pooled_neuron = neuron()
        self.linear = LinearBN(dim, num_classes, bias=True)
        self.score_neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """Classify every step."""
        pooled = self.neuron(self.norm(x)).mean((-2, -1))
        return self.score_neuron(self.linear(self.pooled_neuron(pooled)))


class DSRBackbone(Backbone):
    """A backbone whose per-step scores are read as what they represent."""

    def readout(self, y: Tensor) -> Tensor:
        """Turn spikes `[T, B, K]` into scores `[B, K]`: their mean, for LIF weighted by age."""
        neuron = getattr(self.head, "score_neuron", None)
        return neuron.represent(y) if isinstance(neuron, DSRIF) else super().readout(y)


_NORMED_1X1 = partial(ConvBN, kernel_size=1)
CIFAR: dict[str, Any] = dict(stem=fine_stem, shortcut=partial(Conv, kernel_size=1), bias=True)


@register(
    "dsr",
    variants={
        "18_cifar_if": dict(**CIFAR, neuron=DSRIF, num_classes=10),
        "18_cifar_lif": dict(**CIFAR, neuron=DSRLIF, num_classes=10),
        "18_imagenet_if": dict(neuron=partial(DSRIF, threshold_grad=0.001)),
        "tiny": dict(
            dims=(8, 12, 16),
            depths=(1, 2, 1),
            neuron=partial(DSRIF, v_threshold=1.0),
            num_classes=10,
        ),
    },
)
def dsr(
    *,
    dims: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (2, 2, 2, 2),
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = DSRIF,
    stem: Callable[..., tuple[nn.Module, int]] = coarse_stem,
    shortcut: Callable[..., nn.Module] = _NORMED_1X1,
    bias: bool = False,
    dropout: float = 0.0,
) -> Backbone:
    """Build a DSR ResNet.

    Args:
        dims: Width of each stage; the stem has that of the first.
        depths: Blocks of each stage.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons: `DSRIF` or `DSRLIF` with their options.
        stem: Makes the first layers.
        shortcut: Makes the convolution around a block that changes width or resolution.
        bias: Whether the convolutions of the blocks have one.
        dropout: Probability of dropping a spike of the second neuron of a block.

    Raises:
        ConfigError: If `dims` and `depths` differ in length.

    Deviations:
        The gradients of the thresholds are those of the official code: for LIF neurons `dt` stands
        where the paper's clip has `1 / dt`, and the ImageNet network scales them by 0.001.

    Reference:
        Meng et al., CVPR 2022, arXiv:2205.00459.
    """
    if len(dims) != len(depths):
        raise ConfigError(
            f"dims and depths must have one entry per stage, got {len(dims)} and {len(depths)}"
        )

    def block(width: int, dim: int, stride: int) -> nn.Module:
        body = Chain(
            conv1=ConvBN(width, dim, 3, stride, bias=bias),
            neuron=neuron(),
            dropout=nn.Dropout(dropout),
            conv2=Conv(dim, dim, 3, padding=1, bias=bias),
        )
        around = None if (width, stride) == (dim, 1) else shortcut(width, dim, stride=stride)
        return Chain(norm=Norm(width), neuron=neuron(), sum=Residual(body, around))

    stages: list[Stage] = []
    embed, stem_stride = stem(in_channels, dims[0], neuron)
    width, stride = dims[0], 1
    for dim, depth in zip(dims, depths, strict=True):
        blocks = [block(width, dim, stride), *[block(dim, dim, 1) for _ in range(depth - 1)]]
        stages.append(Stage(embed, Chain(*blocks), dim, stride if stages else stem_stride))
        embed, width, stride = nn.Identity(), dim, 2
    head = None if num_classes is None else SpikingHead(width, num_classes, neuron)
    return DSRBackbone(stages, head, in_channels)
