"""Bodies of residual branches: they take spikes and return the current that a trunk adds."""

from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import Conv, ConvBN, LinearBN
from spikeformers.neurons import LIF, NeuronFactory


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


class ChannelConv(Chain):
    """Two 3x3 convolutions with a wide hidden layer: mixes channels, in conv blocks.

    Args:
        dim: Channels.
        expansion: Widening of the hidden layer.
        neuron: Makes the neuron.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.2.
    """

    def __init__(self, dim: int, expansion: int = 4, neuron: NeuronFactory = LIF) -> None:
        hidden = expansion * dim
        super().__init__(
            expand=ConvBN(dim, hidden, 3), neuron=neuron(), project=ConvBN(hidden, dim, 3)
        )


class ChannelMLP(Chain):
    """Two linear maps with a wide hidden layer: mixes channels, in attention blocks.

    Args:
        dim: Channels.
        expansion: Widening of the hidden layer.
        neuron: Makes the neuron.

    Shape:
        spikes `[T, B, C, ...]` -> current `[T, B, C, ...]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(self, dim: int, expansion: int = 4, neuron: NeuronFactory = LIF) -> None:
        hidden = expansion * dim
        super().__init__(
            expand=LinearBN(dim, hidden, bias=True),
            neuron=neuron(),
            project=LinearBN(hidden, dim, bias=True),
        )
