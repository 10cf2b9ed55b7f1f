"""Synapses in series, without a neuron between them: at inference each is one linear map.

`fold` goes from the inside out, so whatever is folded here has parts that are folded already.
"""

from typing import cast

import torch
from torch import Tensor, nn

from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import BatchNorm, Linear, LinearBN


class RepLinear(Chain):
    """Re-parameterised linear map over channels: two of them, each with its norm.

    Args:
        in_channels: Width of the input.
        hidden: Width between the two.
        out_channels: Width of the output.

    Shape:
        `[T, B, in_channels, ...]` -> `[T, B, out_channels, ...]`.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__(LinearBN(in_channels, hidden), LinearBN(hidden, out_channels))

    def fold(self) -> Linear:
        """Multiply the two maps."""
        first, second = cast(tuple[Linear, Linear], tuple(self))
        return Linear.of(second.weight @ first.weight, second.weight @ first.bias + second.bias)


class Renormed(nn.Module):
    """A synapse with one more batch norm.

    Args:
        synapse: Folds to a linear map over channels.
        dim: Its width.

    Shape:
        `[T, B, C, ...]` -> `[T, B, dim, ...]`.
    """

    def __init__(self, synapse: nn.Module, dim: int) -> None:
        super().__init__()
        self.synapse = synapse
        self.norm = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise what the synapse gives."""
        return self.norm(self.synapse(x).flatten(0, 1)).unflatten(0, x.shape[:2])

    def fold(self) -> Linear:
        """Scale and shift the map."""
        return _rescaled(self.synapse, *self.norm.affine_map())


class LayerScale(nn.Module):
    """A synapse whose output is multiplied by a learned factor per channel, which starts tiny.

    Args:
        synapse: Folds to a linear map over channels.
        dim: Its width.
        initial: First value of the factors.

    Shape:
        `[T, B, C, ...]` -> `[T, B, dim, ...]`.

    Reference:
        Touvron et al., "Going deeper with Image Transformers", ICCV 2021, arXiv:2103.17239, eq. 4.
    """

    def __init__(self, synapse: nn.Module, dim: int, initial: float = 1e-6) -> None:
        super().__init__()
        self.synapse = synapse
        self.gain = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply what the synapse gives."""
        y = self.synapse(x)
        return y * self.gain.view(-1, *[1] * (y.ndim - 3))

    def fold(self) -> Linear:
        """Scale the map."""
        return _rescaled(self.synapse, self.gain, torch.zeros_like(self.gain))


def _rescaled(linear: nn.Module, gain: Tensor, offset: Tensor) -> Linear:
    """Return a linear map with its output scaled and shifted per channel."""
    assert isinstance(linear, Linear)
    return Linear.of(linear.weight * gain[:, None], linear.bias * gain + offset)
