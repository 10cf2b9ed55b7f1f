"""Bodies of residual branches: they take spikes and return the current that a trunk adds."""

from collections.abc import Callable
from functools import partial

from torch import nn

from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import Conv, ConvBN, LinearBN, Synapse, biased_linear
from spikeformers.neurons import LIF, NeuronFactory

_conv1x1 = partial(ConvBN, kernel_size=1)
_conv3x3 = partial(ConvBN, kernel_size=3)


class SepConv(Chain):
    """Separable convolution: 1x1 up, neuron, depthwise, 1x1 down. Mixes neighbouring tokens.

    There is no neuron between the depthwise and the last pointwise convolution, so the latter sees
    real values: not spike-driven, as the audit shows.

    Args:
        dim: Channels.
        expansion: Widening of the hidden layer.
        kernel_size: Side of the depthwise kernel.
        neuron: Makes the neuron.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.2.
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 2,
        kernel_size: int = 7,
        neuron: NeuronFactory = LIF,
    ) -> None:
        hidden = expansion * dim
        padding = kernel_size // 2
        super().__init__(
            expand=ConvBN(dim, hidden, 1),
            neuron=neuron(),
            depthwise=Conv(hidden, hidden, kernel_size, padding=padding, groups=hidden, bias=False),
            project=ConvBN(hidden, dim, 1),
        )


class SpikeSepConv(Chain):
    """Separable convolution with a neuron between its parts, so that each one sees spikes.

    Args:
        dim: Channels; the hidden layer has twice as many.
        kernel_size: Side of the depthwise kernel.
        neuron: Makes the neurons.
        project: Makes the last convolution from its two widths.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        neuron: NeuronFactory = LIF,
        project: Callable[[int, int], Synapse] = _conv1x1,
    ) -> None:
        hidden = 2 * dim
        super().__init__(
            expand=ConvBN(dim, hidden, 1),
            neuron1=neuron(),
            depthwise=ConvBN(hidden, hidden, kernel_size, groups=hidden),
            neuron2=neuron(),
            project=project(hidden, dim),
        )


class ChannelConv(Chain):
    """Two 3x3 convolutions with a wide hidden layer: mixes channels, in conv blocks.

    Args:
        dim: Channels.
        expansion: Widening of the hidden layer.
        neuron: Makes the neuron.
        conv: Makes a 3x3 convolution from its two widths.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.2.
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 4,
        neuron: NeuronFactory = LIF,
        conv: Callable[[int, int], Synapse] = _conv3x3,
    ) -> None:
        hidden = expansion * dim
        super().__init__(expand=conv(dim, hidden), neuron=neuron(), project=conv(hidden, dim))


class ChannelMLP(Chain):
    """Two linear maps with a wide hidden layer: mixes channels, in attention blocks.

    Args:
        dim: Channels.
        expansion: Widening of the hidden layer.
        neuron: Makes the neuron.
        project: Makes the last synapse.

    Shape:
        spikes `[T, B, C, ...]` -> current `[T, B, C, ...]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(
        self,
        dim: int,
        expansion: int = 4,
        neuron: NeuronFactory = LIF,
        project: Callable[[int, int], nn.Module] = biased_linear,
    ) -> None:
        hidden = expansion * dim
        super().__init__(
            expand=LinearBN(dim, hidden, bias=True), neuron=neuron(), project=project(hidden, dim)
        )
