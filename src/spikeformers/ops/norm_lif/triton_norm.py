# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The norm alone on a GPU: moments, affine maps and their gradients, in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeformers.ops.bits import words
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.gpu import launch
from spikeformers.ops.triton_tiles import (
    LANES,
    ROWS,
    channels_of,
    packed,
    rows_of,
    share,
    wide,
)


@triton.jit
def vector(parameter, channel, channels):
    """Values of a parameter `[C]` for the channels of a tile."""
    return tl.load(parameter + channel, channel < channels, 0.0)


@triton.jit
def norm(y, gain, offset, residual, at, mine):
    """`gain y + offset + residual` in a tile, each of which may be missing but `y`."""
    x = wide(tl.load(y + at, mine, 0.0))
    if gain is not None:
        x = gain * x + offset
    if residual is not None:
        x += wide(tl.load(residual + at, mine, 0.0))
    return x


@triton.jit
def _merge(count, mean, squares):
    """Mean and squared deviations of a whole from those of its parts, along axis 0."""
    total_mean = tl.sum(count * mean, 0, keep_dims=True) / tl.sum(count, 0, keep_dims=True)
    squares += count * (mean - total_mean) * (mean - total_mean)
    return total_mean, tl.sum(squares, 0, keep_dims=True)


@triton.jit
def _moments_of_parts(y, means, squares, rows, channels, tiles, ROWS: tl.constexpr):
    dtype: tl.constexpr = means.dtype.element_ty
    part, channel = tl.program_id(0), channels_of(tl.program_id(1))
    count = tl.zeros([ROWS, 1], dtype)
    mean, square = tl.zeros([ROWS, LANES], dtype), tl.zeros([ROWS, LANES], dtype)
    for tile in range(part * tiles, (part + 1) * tiles):
        row = rows_of(tile, ROWS)
        mine = (row < rows) & (channel < channels)
        value = tl.load(y + row * channels + channel, mine, 0.0).to(dtype)
        # Every lane keeps the moments of what it has seen: no sum grows beyond its terms.
        count += (row < rows).to(dtype)
        away = tl.where(mine, value - mean, 0.0)
        mean += away / tl.maximum(count, 1.0)
        square += away * (value - mean)
    mean, square = _merge(count, mean, square)
    at = part * channels + channel
    tl.store(means + at, mean, channel < channels)
    tl.store(squares + at, square, channel < channels)


@triton.jit
def _moments_of_all(
    means,
    squares,
    mean,
    var,
    rows,
    channels,
    rows_of_part,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    part = tl.arange(0, PARTS)[:, None].to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    count = tl.minimum(tl.maximum(rows - part * rows_of_part, 0), rows_of_part)
    at, mine = part * channels + channel, (count > 0) & (channel < channels)
    part_mean, square = tl.load(means + at, mine, 0.0), tl.load(squares + at, mine, 0.0)
    total_mean, square = _merge(count.to(square.dtype), part_mean, square)
    tl.store(mean + channel, total_mean, channel < channels)
    tl.store(var + channel, square / rows, channel < channels)


@triton.jit
def _norm_add(y, residual, gain, offset, stream, rows, channels, ROWS: tl.constexpr):
    row, channel = rows_of(tl.program_id(0), ROWS), channels_of(tl.program_id(1))
    at, mine = row * channels + channel, (row < rows) & (channel < channels)
    if gain is not None:
        gain, offset = vector(gain, channel, channels), vector(offset, channel, channels)
    tl.store(stream + at, norm(y, gain, offset, residual, at, mine), mine)


@triton.jit
def _norm_backward(grad_x, y, a, b, c, grad_y, rows, channels, ROWS: tl.constexpr):
    row, channel = rows_of(tl.program_id(0), ROWS), channels_of(tl.program_id(1))
    at, mine = row * channels + channel, (row < rows) & (channel < channels)
    a, b, c = (
        vector(a, channel, channels),
        vector(b, channel, channels),
        vector(c, channel, channels),
    )
    direct = a * wide(tl.load(grad_x + at, mine, 0.0))
    by_moments = b * wide(tl.load(y + at, mine, 0.0))
    tl.store(grad_y + at, direct + by_moments + c, mine)


@triton.jit
def _norm_products(grad_x, y, of_gain, of_offset, rows, channels, tiles, ROWS: tl.constexpr):
    dtype: tl.constexpr = of_gain.dtype.element_ty
    part, channel = tl.program_id(0), channels_of(tl.program_id(1))
    products, sums = tl.zeros([ROWS, LANES], dtype), tl.zeros([ROWS, LANES], dtype)
    for tile in range(part * tiles, (part + 1) * tiles):
        row = rows_of(tile, ROWS)
        at, mine = row * channels + channel, (row < rows) & (channel < channels)
        grad = tl.load(grad_x + at, mine, 0.0).to(dtype)
        products += grad * tl.load(y + at, mine, 0.0).to(dtype)
        sums += grad
    at = part * channels + channel
    tl.store(of_gain + at, tl.sum(products, 0, keep_dims=True), channel < channels)
    tl.store(of_offset + at, tl.sum(sums, 0, keep_dims=True), channel < channels)


def channel_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance `[C]` of `[T, R, C]`."""
    y, rows, channels = y.contiguous(), y.numel() // y.shape[-1], y.shape[-1]
    parts, tiles = share(rows, ROWS)
    means = y.new_empty(parts, channels, dtype=membrane_dtype(y))
    squares, mean, var = torch.empty_like(means), *means.new_empty(2, channels)
    launch(
        _moments_of_parts,
        (parts, words(channels)),
        *(y, means, squares),
        *(rows, channels, tiles),
        ROWS=ROWS,
    )
    launch(
        _moments_of_all,
        (triton.cdiv(channels, 8),),
        *(means, squares, mean, var),
        *(rows, channels, tiles * ROWS),
        PARTS=triton.next_power_of_2(parts),
        CHANNELS=8,
    )
    return mean, var


def norm_products(grad_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients `[C]` of gain and offset: the sums of `grad_x y` and of `grad_x`."""
    rows, channels = y.numel() // y.shape[-1], y.shape[-1]
    parts, tiles = share(rows, ROWS)
    of_gain, of_offset = y.new_empty(2, parts, channels, dtype=membrane_dtype(y))
    launch(
        _norm_products,
        (parts, words(channels)),
        *(grad_x.contiguous(), y.contiguous(), of_gain, of_offset),
        *(rows, channels, tiles),
        ROWS=ROWS,
    )
    return of_gain.sum(0), of_offset.sum(0)


def norm_add(
    y: Tensor, residual: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> Tensor:
    """`gain y + offset + residual`, each of which may be missing but `y`."""
    return _tile_by_tile(_norm_add, y.contiguous(), packed(residual), gain, offset)


def norm_backward(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a grad_x + b y + c`, the gradient of `y`, directly and through its moments."""
    return _tile_by_tile(_norm_backward, grad_x.contiguous(), y.contiguous(), a, b, c)


def _tile_by_tile(kernel: Any, like: Tensor, *tensors: Tensor | None) -> Tensor:
    result, rows, channels = torch.empty_like(like), like.numel() // like.shape[-1], like.shape[-1]
    programs = triton.cdiv(rows, ROWS), words(channels)
    launch(kernel, programs, like, *tensors, result, rows, channels, ROWS=ROWS)
    return result
