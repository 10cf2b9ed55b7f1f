"""Tokenizers: from an image to a map of tokens, by 3x3 convolutions and max pooling.

    SPS                conv, neuron, pool, ..., then neuron(conv(x)) is added to the spikes x
    SpikingTokenizer   conv, neuron, pool, ..., then one more convolution: potentials for a trunk

Both climb the same four steps; where a step pools, relative to its neuron, is the choice between
`fire_then_pool` and `pool_then_fire`.
"""

from collections.abc import Callable

from torch import nn

from spikeformers.errors import InputError
from spikeformers.layers.shortcut import Chain, sew
from spikeformers.layers.synapse import ConvBN, PerStep
from spikeformers.neurons import LIF, Neuron, NeuronFactory

STEPS = 4

Downsample = Callable[[ConvBN, Neuron], Chain]
"""Arranges a convolution, its neuron and a pooling."""


def fire_then_pool(conv: ConvBN, neuron: Neuron) -> Chain:
    """Pool spikes: the largest of binary values says that one of them is a spike.

    Reference:
        Zhou et al., "Spikformer", ICLR 2023, arXiv:2209.15425.
    """
    return Chain(conv=conv, neuron=neuron, pool=_halve())


def pool_then_fire(conv: ConvBN, neuron: Neuron) -> Chain:
    """Pool currents (CML): the gradient takes the way through the largest one, not through a tie.

    At one time step both orders fire the same spikes; their gradients and later steps differ.

    Reference:
        Zhou et al., "Enhancing the Performance of Transformer-based Spiking Neural Networks by
        SNN-optimized Downsampling with Precise Gradient Backpropagation", 2023, arXiv:2305.05954.
    """
    return Chain(conv=conv, pool=_halve(), neuron=neuron)


class SPS(Chain):
    """Spiking patch splitting: four steps, then a relative position embedding of spikes.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, a multiple of 8; the steps have `dim/8, dim/4, dim/2, dim`.
        pools: How many of the four steps, the last ones, halve the map.
        downsample: Arranges such a step: `fire_then_pool` or `pool_then_fire`.
        neuron: Makes the neurons.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, dim, H / 2**pools, W / 2**pools]`, rounded up,
        integers 0, 1 and 2.

    Reference:
        Zhou et al., "Spikformer", ICLR 2023, arXiv:2209.15425.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        pools: int = STEPS,
        downsample: Downsample = fire_then_pool,
        neuron: NeuronFactory = LIF,
    ) -> None:
        super().__init__(*_steps(in_channels, dim, pools, downsample, neuron))
        self.position = sew(Chain(conv=ConvBN(dim, dim, 3), neuron=neuron()))


class SpikingTokenizer(Chain):
    """Four steps, then a convolution without neuron: every convolution but the first sees spikes.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, a multiple of 8; the steps have `dim/8, dim/4, dim/2, dim`.
        pools: How many of the four steps, the last ones, halve the map.
        downsample: Arranges such a step: `fire_then_pool` or `pool_then_fire`.
        neuron: Makes the neurons.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, dim, H / 2**pools, W / 2**pools]`, rounded up,
        membrane potentials.

    Reference:
        Zhou et al., "Spikingformer", 2023, arXiv:2304.11954.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        pools: int = STEPS,
        downsample: Downsample = fire_then_pool,
        neuron: NeuronFactory = LIF,
    ) -> None:
        super().__init__(*_steps(in_channels, dim, pools, downsample, neuron))
        self.conv = ConvBN(dim, dim, 3)


def _steps(
    in_channels: int, dim: int, pools: int, downsample: Downsample, neuron: NeuronFactory
) -> list[Chain]:
    """Return four convolutions that double the width, each with its neuron."""
    if dim % 8:
        raise InputError(f"dim={dim}: the tokenizer needs a multiple of 8")
    if not 0 <= pools <= STEPS:
        raise InputError(f"pools={pools}: expected 0 to {STEPS}, one per step at most")
    widths = [in_channels, dim // 8, dim // 4, dim // 2, dim]
    arrange = [_fire] * (STEPS - pools) + [downsample] * pools
    return [
        step(ConvBN(narrow, wide, 3), neuron())
        for step, narrow, wide in zip(arrange, widths[:-1], widths[1:], strict=True)
    ]


def _fire(conv: ConvBN, neuron: Neuron) -> Chain:
    return Chain(conv=conv, neuron=neuron)


def _halve() -> PerStep:
    return PerStep(nn.MaxPool2d(3, stride=2, padding=1))
