"""What is fast on a CPU: pieces of few channels at a time, in `csrc/depthwise*.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.depthwise import reference
from spikeformers.ops.native import INT, POINTER, Kernel, dtype_code, or_else
from spikeformers.ops.spike_conv.native import Conv
from spikeformers.ops.spike_conv.reference import out_shape

_conv = Kernel("depthwise_conv", INT, *[POINTER] * 4)
_spike_conv = Kernel("spike_depthwise_conv", INT, *[POINTER] * 4)
_weight_grad = Kernel("depthwise_weight_grad", INT, *[POINTER] * 4)
_spike_weight_grad = Kernel("spike_depthwise_weight_grad", INT, *[POINTER] * 4)
_framed = Kernel("framed_depthwise", INT, *[POINTER] * 7)
_framed_backward = Kernel("framed_depthwise_backward", INT, *[POINTER] * 11)


@or_else(reference.depthwise_conv)
def depthwise_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """See `reference.depthwise_conv`."""
    return _convolve(_conv, x, weight, padding, x.dtype)


@or_else(reference.spike_depthwise_conv)
def spike_depthwise_conv(bits: Tensor, weight: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """See `reference.spike_depthwise_conv`."""
    return _convolve(_spike_conv, bits, weight, padding, dtype)


def _convolve(
    kernel: Kernel, seen: Tensor, weight: Tensor, padding: int, dtype: torch.dtype
) -> Tensor:
    channels, *_, kernel_size = weight.shape
    y = seen.new_empty((*out_shape(seen, kernel_size, 1, padding), channels), dtype=dtype)
    conv = Conv.between(seen, channels, y, kernel_size, 1, padding)
    kernel(dtype_code(y), ctypes.byref(conv), seen.contiguous(), _taps(weight, y), y)
    return y


@or_else(reference.depthwise_weight_grad)
def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """See `reference.depthwise_weight_grad`."""
    return _grad_of_weight(_weight_grad, x, grad, (kernel_size, stride, padding))


@or_else(reference.spike_depthwise_weight_grad)
def spike_depthwise_weight_grad(
    bits: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """See `reference.spike_depthwise_weight_grad`."""
    return _grad_of_weight(_spike_weight_grad, bits, grad, (kernel_size, stride, padding))


def _grad_of_weight(
    kernel: Kernel, seen: Tensor, grad: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    channels, side = grad.shape[3], shape[0]
    grad_weight = grad.new_empty((channels, 1, side, side), dtype=membrane_dtype(grad))
    conv = Conv.between(seen, channels, grad, *shape)
    seen, grad = seen.contiguous(), grad.contiguous()
    kernel(dtype_code(grad), ctypes.byref(conv), seen, grad, grad_weight)
    return grad_weight


@or_else(reference.framed_depthwise)
def framed_depthwise(
    x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> Tensor:
    """See `reference.framed_depthwise`."""
    y = torch.empty(x.shape, dtype=x.dtype)
    _framed(dtype_code(x), _same(x, weight), *_seen(x, gain, offset, border, weight), y)
    return y


@or_else(reference.framed_depthwise_backward)
def framed_depthwise_backward(
    grad: Tensor, x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.framed_depthwise_backward`."""
    inside = torch.empty(x.shape, dtype=x.dtype)
    wide = membrane_dtype(x)
    of_gain, of_offset, of_weight = (
        torch.empty(p.shape, dtype=wide) for p in (gain, offset, weight)
    )
    seen = _seen(x, gain, offset, border, weight)
    grads = inside, of_gain, of_offset, of_weight
    _framed_backward(dtype_code(x), _same(x, weight), *seen, grad.contiguous(), *grads)
    return grads


def _same(x: Tensor, weight: Tensor) -> "ctypes._Pointer[Conv]":
    """Return a convolution that leaves the size of maps as it is."""
    kernel_size = weight.shape[-1]
    return ctypes.pointer(Conv.between(x, x.shape[3], x, kernel_size, 1, kernel_size // 2))


def _seen(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Return what a framed convolution sees, as the kernels take it."""
    wide = membrane_dtype(x)
    *vectors, weight = parameters
    return [x.contiguous(), *(vector.to(wide).contiguous() for vector in vectors), _taps(weight, x)]


def _taps(weight: Tensor, x: Tensor) -> Tensor:
    """`[C, 1, k, k]` -> `[k, k, C]`, for computations with `x`."""
    return weight[:, 0].movedim(0, -1).to(membrane_dtype(x)).contiguous()
