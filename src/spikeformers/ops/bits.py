"""Spikes as bits: 64-bit words along the last axis.

Channel `c` is bit `c % 64` of word `c // 64`; the bits behind the last channel are 0.
"""

import torch
from torch import Tensor

from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, dtype_code, or_else

WORD = 64

_pack = Kernel("pack_bits", INT, SIZE, SIZE, POINTER, POINTER)
_unpack = Kernel("unpack_bits", INT, SIZE, SIZE, POINTER, POINTER)


def words(channels: int) -> int:
    """Return how many words hold that many channels."""
    return -(-channels // WORD)


def pack_reference(spikes: Tensor) -> Tensor:
    """See `pack`."""
    channels = spikes.shape[-1]
    padded = torch.nn.functional.pad(spikes != 0, (0, words(channels) * WORD - channels))
    shifts = torch.arange(WORD, device=spikes.device)
    return (padded.unflatten(-1, (-1, WORD)).long() << shifts).sum(-1)


@or_else(pack_reference)
def pack(spikes: Tensor) -> Tensor:
    """Pack `[..., C]` (nonzero is a spike) into int64 words `[..., ceil(C/64)]`."""
    code, channels = dtype_code(spikes), spikes.shape[-1]
    bits = spikes.new_empty((*spikes.shape[:-1], words(channels)), dtype=torch.int64)
    _pack(code, spikes.numel() // max(1, channels), channels, spikes.contiguous(), bits)
    return bits


def unpack_reference(bits: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """See `unpack`."""
    shifts = torch.arange(WORD, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).flatten(-2)[..., :channels].to(dtype)


@or_else(unpack_reference)
def unpack(bits: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return the spikes `[..., channels]`, 0 and 1, of int64 words `[..., ceil(channels/64)]`."""
    spikes = torch.empty((*bits.shape[:-1], channels), dtype=dtype, device=bits.device)
    rows = bits.numel() // max(1, bits.shape[-1])
    _unpack(dtype_code(spikes), rows, channels, bits.contiguous(), spikes)
    return spikes


def firing_rate(bits: Tensor, channels: int, sample: int = 16384) -> float:
    """Estimate the share of ones among the channels, from so many words spread over all.

    Args:
        bits: Words `[..., ceil(channels/64)]`.
        channels: How many bits of a row are spikes.
        sample: How many words to look at, about.
    """
    rows = bits.flatten(0, -2)
    rows = rows[:: max(1, bits.numel() // sample)]
    x = rows - ((rows >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    ones = (x * 0x0101010101010101) >> 56
    return ones.sum().item() / (rows.shape[0] * channels)
