# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What is fast on a GPU: norm, residual sum and LIF neuron in one pass, spikes as bits, in Triton.

The norm alone stands in `triton_norm.py`. The backward pass computes the membranes again: it walks
through time forth and back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeformers.ops.bits import WORD, words
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.gpu import launch
from spikeformers.ops.lif.triton_step import (
    Dynamics,
    backwards,
    block_of,
    charge,
    fires,
    reset,
    reset_derivatives,
    surrogate_derivative,
)
from spikeformers.ops.norm_lif.triton_norm import (
    channel_moments,
    norm,
    norm_add,
    norm_backward,
    norm_products,
    vector,
)
from spikeformers.ops.triton_tiles import (
    LANES,
    ROWS,
    channels_of,
    packed,
    rows_of,
    share,
    spikes_of,
    wide,
    word_of,
)

__all__ = [
    "channel_moments",
    "norm_add",
    "norm_backward",
    "norm_lif",
    "norm_lif_backward_",
    "norm_products",
]


@triton.jit
def _norm_lif(
    y,
    residual,
    gain,
    offset,
    decay,
    v_threshold,
    bits,
    stream,
    T,
    rows,
    channels,
    words,
    neuron: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, channel = rows_of(tl.program_id(0), ROWS), channels_of(tl.program_id(1))
    at, mine = row * channels + channel, (row < rows) & (channel < channels)
    word_at = row * words + tl.program_id(1)
    step, word_step = tl.cast(rows, tl.int64) * channels, tl.cast(rows, tl.int64) * words
    if gain is not None:
        gain, offset = vector(gain, channel, channels), vector(offset, channel, channels)
    d, threshold = tl.load(decay), tl.load(v_threshold)
    v = tl.full([ROWS, LANES], neuron.rest, d.dtype)
    for _ in range(T):
        x = norm(y, gain, offset, residual, at, mine)
        if stream is not None:  # the neuron sees what is kept, rounded as it is
            kept = x.to(stream.dtype.element_ty)
            tl.store(stream + at, kept, mine)
            x = wide(kept)
        h = charge(v, x, d, neuron)
        s = fires(h, threshold, neuron)
        tl.store(bits + word_at, word_of(s, mine), row < rows)
        v = reset(h, s, threshold, neuron)
        at, word_at = at + step, word_at + word_step


@triton.jit
def _norm_lif_backward(
    grad,
    grad_stream,
    bits,
    x,
    gain,
    offset,
    y,
    decay,
    v_threshold,
    grad_v,
    of_gain,
    of_offset,
    first,
    rows,
    channels,
    words,
    tiles,
    neuron: tl.constexpr,
    T: tl.constexpr,
    ROWS: tl.constexpr,
):
    part, channel = tl.program_id(0), channels_of(tl.program_id(1))
    step, word_step = tl.cast(rows, tl.int64) * channels, tl.cast(rows, tl.int64) * words
    if gain is not None:
        gain, offset = vector(gain, channel, channels), vector(offset, channel, channels)
    d, threshold = tl.load(decay), tl.load(v_threshold)
    products, sums = tl.zeros([ROWS, LANES], d.dtype), tl.zeros([ROWS, LANES], d.dtype)
    for tile in range(part * tiles, (part + 1) * tiles):
        row = rows_of(tile, ROWS)
        i, in_rows, mine = row * channels + channel, row < rows, (row < rows) & (channel < channels)
        at, word_at = i, row * words + tl.program_id(1)
        v = tl.full([ROWS, LANES], neuron.rest, d.dtype)
        if first is not None:
            for _ in range(first):
                h = charge(v, norm(x, gain, offset, None, at, mine), d, neuron)
                s = spikes_of(tl.load(bits + word_at, in_rows, 0), d.dtype)
                v = reset(h, s, threshold, neuron)
                at, word_at = at + step, word_at + word_step
        steps = ()
        for _ in tl.static_range(T):
            h = charge(v, norm(x, gain, offset, None, at, mine), d, neuron)
            s = spikes_of(tl.load(bits + word_at, in_rows, 0), d.dtype)
            steps += ((h, s),)  # type: ignore[assignment]
            v = reset(h, s, threshold, neuron)
            at, word_at = at + step, word_at + word_step

        of_v = tl.load(grad_v + i, mine, 0.0) if grad_v is not None else tl.zeros_like(v)
        for back in tl.static_range(T):
            at -= step
            h, s = steps[T - 1 - back]
            slope = surrogate_derivative(h - threshold, neuron)
            by_h, _ = reset_derivatives(h, s, slope, threshold, neuron)
            of_h = tl.load(grad + at, mine, 0.0).to(d.dtype) * slope + of_v * by_h
            of_x = of_h * (1 - d) if neuron.decay_input else of_h
            of_v = of_h * d
            if grad_stream is not None:
                of_x += tl.load(grad_stream + at, mine, 0.0).to(d.dtype)
            tl.store(grad + at, of_x, mine)
            if y is not None:
                products += of_x * tl.load(y + at, mine, 0.0).to(d.dtype)
                sums += of_x
        if grad_v is not None:
            tl.store(grad_v + i, of_v, mine)
    if y is not None:
        at = part * channels + channel
        tl.store(of_gain + at, tl.sum(products, 0, keep_dims=True), channel < channels)
        tl.store(of_offset + at, tl.sum(sums, 0, keep_dims=True), channel < channels)


def norm_lif(
    y: Tensor,
    residual: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    strict: bool,
    keeps_stream: bool,
) -> tuple[Tensor, Tensor]:
    """Spike bits `[T, R, words]` of `x = gain y + offset + residual`, and `x` if it is kept."""
    y, (timesteps, rows, channels) = y.contiguous(), y.shape
    bits = y.new_empty(timesteps, rows, words(channels), dtype=torch.int64)
    stream = torch.empty_like(y) if keeps_stream else None
    launch(
        _norm_lif,
        (triton.cdiv(rows, ROWS), words(channels)),
        *(y, packed(residual), gain, offset, decay, v_threshold, bits, stream),
        *(timesteps, rows, channels, words(channels)),
        neuron=Dynamics(v_reset, decay_input, strict),
        ROWS=ROWS,
    )
    return bits, y.new_empty(0) if stream is None else stream


def norm_lif_backward_(
    grad_spikes: Tensor,
    grad_stream: Tensor | None,
    bits: Tensor,
    y: Tensor,
    stream: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `gain` and `offset` (`[C]`) where there is a norm; see `reference.py`."""
    y, (timesteps, rows, channels) = y.contiguous(), y.shape
    pieces, normed = backwards(timesteps), gain is not None
    tile = block_of(pieces[-1][1]) // WORD
    parts, tiles = share(rows, tile)
    grad, wide_dtype = grad_spikes.contiguous(), membrane_dtype(y)
    grad_v = torch.zeros_like(y[0], dtype=wide_dtype) if len(pieces) > 1 else None
    sums = y.new_empty(2, len(pieces), parts, channels if normed else 0, dtype=wide_dtype)
    current = (y, gain, offset) if stream is None else (stream.contiguous(), None, None)
    for piece, (first, length) in enumerate(pieces):
        launch(
            _norm_lif_backward,
            (parts, words(channels)),
            *(grad, packed(grad_stream), bits.contiguous(), *current),
            *(y if normed else None, decay, v_threshold, grad_v, *sums[:, piece]),
            *(first or None, rows, channels, words(channels), tiles),
            neuron=Dynamics(v_reset, decay_input, False, detach_reset, surrogate, alpha),
            T=length,
            ROWS=tile,
        )
    if grad is not grad_spikes:
        grad_spikes.copy_(grad)
    grad_gain, grad_offset = sums.sum((1, 2))
    return grad_gain, grad_offset
