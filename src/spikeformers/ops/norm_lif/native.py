"""What is fast on a CPU: the native kernels of `csrc/norm_lif.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.bits import words
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.lif.native import neuron_options
from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, dtype_code, or_else
from spikeformers.ops.norm_lif import reference

_moments = Kernel("channel_moments", INT, SIZE, SIZE, *[POINTER] * 3)
_add = Kernel("norm_add", INT, SIZE, SIZE, *[POINTER] * 5)
_products = Kernel("norm_products", INT, SIZE, SIZE, *[POINTER] * 4)
_norm_backward = Kernel("norm_backward", INT, SIZE, SIZE, *[POINTER] * 6)
_forward = Kernel("norm_lif_forward", INT, POINTER, *[SIZE] * 3, *[POINTER] * 6)
_backward = Kernel("norm_lif_backward", INT, POINTER, *[SIZE] * 3, *[POINTER] * 9)


def _rows(y: Tensor) -> tuple[int, int, int]:
    """Dtype, rows and channels, as the kernels without time take them."""
    return dtype_code(y), y.shape[0] * y.shape[1], y.shape[2]


def _vector(y: Tensor) -> Tensor:
    return y.new_empty(y.shape[-1], dtype=membrane_dtype(y))


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@or_else(reference.channel_moments)
def channel_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.channel_moments`."""
    mean, var = _vector(y), _vector(y)
    _moments(*_rows(y), y.contiguous(), mean, var)
    return mean, var


@or_else(reference.norm_add)
def norm_add(
    y: Tensor, residual: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> Tensor:
    """See `reference.norm_add`."""
    stream = torch.empty(y.shape, dtype=y.dtype)
    _add(*_rows(y), y.contiguous(), *map(_whole, (residual, gain, offset)), stream)
    return stream


@or_else(reference.norm_products)
def norm_products(grad_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.norm_products`."""
    grad_gain, grad_offset = _vector(y), _vector(y)
    _products(*_rows(y), grad_x.contiguous(), y.contiguous(), grad_gain, grad_offset)
    return grad_gain, grad_offset


@or_else(reference.norm_backward)
def norm_backward(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """See `reference.norm_backward`."""
    grad_y = torch.empty(y.shape, dtype=y.dtype)
    _norm_backward(*_rows(y), *(x.contiguous() for x in (grad_x, y, a, b, c)), grad_y)
    return grad_y


@or_else(reference.norm_backward_)
def norm_backward_(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """See `reference.norm_backward_`."""
    rows = grad_x.contiguous()
    _norm_backward(*_rows(y), rows, *(x.contiguous() for x in (y, a, b, c)), rows)
    if rows is not grad_x:
        grad_x.copy_(rows)


@or_else(reference.norm_lif)
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
    """See `reference.norm_lif`."""
    options = neuron_options(decay, v_threshold, v_reset, decay_input, strict=strict)
    bits = torch.empty((*y.shape[:-1], words(y.shape[-1])), dtype=torch.int64)
    stream = torch.empty(y.shape if keeps_stream else 0, dtype=y.dtype)
    _forward(
        dtype_code(y),
        ctypes.byref(options),
        *y.shape,
        y.contiguous(),
        *map(_whole, (residual, gain, offset)),
        bits,
        stream if keeps_stream else None,
    )
    return bits, stream


@or_else(reference.norm_lif_backward_)
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
    """See `reference.norm_lif_backward_`."""
    options = neuron_options(
        decay,
        v_threshold,
        v_reset,
        decay_input,
        detach_reset=detach_reset,
        surrogate=surrogate,
        alpha=alpha,
    )
    grad = grad_spikes.contiguous()
    empty = _vector(y)[:0]
    grad_gain, grad_offset = (empty.clone() if gain is None else _vector(y) for _ in range(2))
    _backward(
        dtype_code(y),
        ctypes.byref(options),
        *y.shape,
        grad,
        *map(_whole, (grad_stream, bits, y, stream, gain, offset)),
        *((None, None) if gain is None else (grad_gain, grad_offset)),
    )
    if grad is not grad_spikes:
        grad_spikes.copy_(grad)
    return grad_gain, grad_offset
