"""Spikes as bits: 64-bit words along the last axis.

Channel `c` is bit `c % 64` of word `c // 64`; the bits behind the last channel are 0.
"""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.gpu import on_gpu
from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, Unsupported, dtype_code, or_else

WORD = 64

_pack = Kernel("pack_bits", INT, SIZE, SIZE, POINTER, POINTER)
_unpack = Kernel("unpack_bits", INT, SIZE, SIZE, POINTER, POINTER)
_count = Kernel("count_bits", SIZE, SIZE, SIZE, POINTER, POINTER)


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
    if spikes.is_cuda:
        return _pack_on_gpu(spikes)
    code, channels = dtype_code(spikes), spikes.shape[-1]
    bits = spikes.new_empty((*spikes.shape[:-1], words(channels)), dtype=torch.int64)
    _pack(code, spikes.numel() // max(1, channels), channels, spikes.contiguous(), bits)
    return bits


def unpack_reference(bits: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """See `unpack`."""
    shifts = torch.arange(WORD, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).flatten(-2)[..., :channels].to(dtype)


_pack_on_gpu = on_gpu("spikeformers.ops.triton_bits.pack", pack_reference)
_unpack_on_gpu = on_gpu("spikeformers.ops.triton_bits.unpack", unpack_reference)


@or_else(unpack_reference)
def unpack(bits: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return the spikes `[..., channels]`, 0 and 1, of int64 words `[..., ceil(channels/64)]`."""
    if bits.is_cuda:
        return _unpack_on_gpu(bits, channels, dtype)
    spikes = torch.empty((*bits.shape[:-1], channels), dtype=dtype, device=bits.device)
    rows = bits.numel() // max(1, bits.shape[-1])
    _unpack(dtype_code(spikes), rows, channels, bits.contiguous(), spikes)
    return spikes


def firing_rate_reference(bits: Tensor, channels: int) -> float:
    """See `firing_rate`."""
    rows = bits.flatten(0, -2)[:: _stride(bits)]
    ones = unpack_reference(rows, rows.shape[-1] * WORD, torch.uint8).sum().item()
    return ones / max(1, rows.shape[0] * channels)


@or_else(firing_rate_reference)
def firing_rate(bits: Tensor, channels: int) -> float:
    """Estimate the share of ones among the channels, from thousands of rows spread over all.

    Args:
        bits: Words `[..., ceil(channels/64)]`.
        channels: How many bits of a row are spikes.
    """
    if bits.device.type != "cpu":
        raise Unsupported(f"bits on {bits.device.type}")
    rows, stride = bits.numel() // max(1, bits.shape[-1]), _stride(bits)
    ones = ctypes.c_int64()
    _count(rows, stride, bits.shape[-1], bits.contiguous(), ctypes.byref(ones))
    return ones.value / max(1, -(-rows // stride) * channels)


def _stride(bits: Tensor) -> int:
    """Of how many rows one is looked at."""
    return max(1, bits.numel() // (1 << 14))
