# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Matrices on a GPU, channels last, cut into tiles of some rows by 64 channels.

A row of a tile is one word of spikes. Sums over rows are made by a fixed number of programs, whose
results are added in a fixed order: the same bits come out on every device.
"""

import triton
import triton.language as tl
from torch import Tensor

from spikeformers.ops.bits import WORD

LANES = tl.constexpr(WORD)
ROWS = 16
PARTS = 1024
"""At most so many programs share the rows of a sum."""


@triton.jit
def rows_of(tile, ROWS: tl.constexpr):
    """Rows of a tile, as a column."""
    return (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)


@triton.jit
def channels_of(column):
    """Channels of a column of tiles, as a row."""
    return column * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def wide(values):
    """16-bit numbers are computed with in float32."""
    return values if values.dtype == tl.float64 else values.to(tl.float32)


@triton.jit
def word_of(s, mine):
    """Spikes of a tile as one word per row."""
    lane = tl.arange(0, LANES)[None, :].to(tl.int64)
    return tl.sum(tl.where(mine, s.to(tl.int64) << lane, 0), 1, keep_dims=True)


@triton.jit
def spikes_of(word, dtype: tl.constexpr):
    """Spikes of a tile, whose rows are words."""
    return ((word >> tl.arange(0, LANES)[None, :]) & 1).to(dtype)


def share(rows: int, tile: int) -> tuple[int, int]:
    """How many programs share the rows, and how many tiles of rows each of them takes."""
    tiles = triton.cdiv(rows, tile * PARTS)
    return triton.cdiv(rows, tile * tiles), tiles


def packed(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor, if there is one, without gaps."""
    return None if tensor is None else tensor.contiguous()
