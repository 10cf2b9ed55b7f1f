# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Packing and unpacking spikes on a GPU, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeformers.ops.bits import words
from spikeformers.ops.gpu import launch
from spikeformers.ops.triton_tiles import ROWS, channels_of, rows_of, spikes_of, word_of


@triton.jit
def _pack(spikes, bits, rows, channels, words, ROWS: tl.constexpr):
    row, channel = rows_of(tl.program_id(0), ROWS), channels_of(tl.program_id(1))
    mine = (row < rows) & (channel < channels)
    s = tl.load(spikes + row * channels + channel, mine, 0) != 0
    tl.store(bits + row * words + tl.program_id(1), word_of(s, mine), row < rows)


@triton.jit
def _unpack(bits, spikes, rows, channels, words, ROWS: tl.constexpr):
    row, channel = rows_of(tl.program_id(0), ROWS), channels_of(tl.program_id(1))
    word = tl.load(bits + row * words + tl.program_id(1), row < rows, 0)
    mine = (row < rows) & (channel < channels)
    tl.store(spikes + row * channels + channel, spikes_of(word, tl.float32), mine)


def pack(spikes: Tensor) -> Tensor:
    """Pack `[..., C]` (nonzero is a spike) into int64 words `[..., ceil(C/64)]`."""
    channels = spikes.shape[-1]
    bits = spikes.new_empty((*spikes.shape[:-1], words(channels)), dtype=torch.int64)
    rows = bits.numel() // max(1, words(channels))
    programs = triton.cdiv(rows, ROWS), words(channels)
    launch(_pack, programs, spikes.contiguous(), bits, rows, channels, words(channels), ROWS=ROWS)
    return bits


def unpack(bits: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return the spikes `[..., channels]`, 0 and 1, of int64 words `[..., ceil(channels/64)]`."""
    spikes = bits.new_empty((*bits.shape[:-1], channels), dtype=dtype)
    rows = bits.numel() // max(1, words(channels))
    programs = triton.cdiv(rows, ROWS), words(channels)
    launch(_unpack, programs, bits.contiguous(), spikes, rows, channels, words(channels), ROWS=ROWS)
    return spikes
