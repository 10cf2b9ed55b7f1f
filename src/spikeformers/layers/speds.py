"""SPEDS, spiking patch embedding with deformed shortcut: how QKFormer's stages change resolution.

Convolutions widen the map and pools halve it; a strided 1x1 convolution takes the input around
them. Both ways end in a neuron, and their spikes add, as in the blocks.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from spikeformers.errors import InputError
from spikeformers.layers.shortcut import Chain, sew
from spikeformers.layers.synapse import ConvBN
from spikeformers.layers.tokenizers import pool_then_fire
from spikeformers.neurons import LIF, NeuronFactory


class SPEDS(Chain):
    """`body(x) + SN(BN(conv1x1(x)))` behind leading convolutions, which make spikes of an image.

    Args:
        dims: Widths from the input on, one more than there are 3x3 convolutions.
        strides: 1, or 2 for a max pool behind it, of each convolution.
        lead: How many convolutions come before the shortcut branches off.
        neuron: Makes the neurons.

    Attributes:
        stride: By how much the map shrinks: the product of `strides`.

    Shape:
        `[T, B, dims[0], H, W]` -> `[T, B, dims[-1], ceil(H/stride), ceil(W/stride)]`; integers up
        to 2.

    Raises:
        InputError: If the widths are not positive, their number does not fit that of the strides,
            a stride is neither 1 nor 2, or no convolution is left beside the shortcut.

    Reference:
        Zhou et al., "QKFormer", NeurIPS 2024, arXiv:2403.16552.
    """

    def __init__(
        self,
        dims: Sequence[int],
        strides: Sequence[int],
        lead: int = 0,
        neuron: NeuronFactory = LIF,
    ) -> None:
        if len(dims) != len(strides) + 1 or min(dims) < 1:
            raise InputError(
                f"dims={tuple(dims)}: expected {len(strides) + 1} positive widths, "
                f"one more than strides={tuple(strides)}"
            )
        if not set(strides) <= {1, 2}:
            raise InputError(f"strides={tuple(strides)}: expected 1 or 2 for each convolution")
        if not 0 <= lead < len(strides):
            raise InputError(f"lead={lead}: expected 0 to {len(strides) - 1} of the convolutions")
        convs = [ConvBN(*widths, 3) for widths in pairwise(dims)]
        layers = [
            pool_then_fire(conv, neuron()) if stride == 2 else Chain(conv=conv, neuron=neuron())
            for stride, conv in zip(strides, convs, strict=True)
        ]
        shrink = ConvBN(dims[lead], dims[-1], 1, math.prod(strides[lead:]))
        super().__init__(
            lead=Chain(*layers[:lead]),
            body=sew(Chain(*layers[lead:]), shortcut=Chain(conv=shrink, neuron=neuron())),
        )
        self.stride = math.prod(strides)


Stem = Callable[[int, int, NeuronFactory], SPEDS]
"""Makes the first embedding from the image's channels, its width, and a neuron factory."""


def image_stem(in_channels: int, dim: int, neuron: NeuronFactory = LIF) -> SPEDS:
    """Patches of 4x4 pixels, for ImageNet."""
    return SPEDS((in_channels, dim // 2, dim, dim), (2, 2, 1), lead=1, neuron=neuron)


def small_image_stem(in_channels: int, dim: int, neuron: NeuronFactory = LIF) -> SPEDS:
    """Every pixel is a patch, for images of 32x32 pixels."""
    return SPEDS((in_channels, dim // 2, dim), (1, 1), lead=1, neuron=neuron)


def event_stem(in_channels: int, dim: int, neuron: NeuronFactory = LIF) -> SPEDS:
    """Patches of 8x8 pixels, for event frames of 128x128."""
    dims = (in_channels, dim // 8, dim // 4, dim // 2, dim)
    return SPEDS(dims, (1, 2, 2, 2), lead=2, neuron=neuron)
