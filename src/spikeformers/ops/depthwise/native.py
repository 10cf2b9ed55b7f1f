"""What is fast on a CPU: one sum of products per tap, in `csrc/*depthwise*.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.depthwise import reference
from spikeformers.ops.native import INT, POINTER, Kernel, dtype_code, or_else
from spikeformers.ops.spike_conv.native import Conv

_weight_grad = Kernel("depthwise_weight_grad", INT, *[POINTER] * 4)
_framed = Kernel("framed_depthwise", INT, *[POINTER] * 7)
_framed_backward = Kernel("framed_depthwise_backward", INT, *[POINTER] * 11)


@or_else(reference.depthwise_weight_grad)
def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """See `reference.depthwise_weight_grad`."""
    channels = x.shape[3]
    shape = (channels, 1, kernel_size, kernel_size)
    grad_weight = x.new_empty(shape, dtype=membrane_dtype(x))
    conv = Conv.between(x, channels, grad, kernel_size, stride, padding)
    x, grad = x.contiguous(), grad.contiguous()
    _weight_grad(dtype_code(x), ctypes.byref(conv), x, grad, grad_weight)
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
    """Return what a framed convolution sees, as the kernels take it: weights as `[k, k, C]`."""
    wide = membrane_dtype(x)
    *vectors, weight = (p.to(wide) for p in parameters)
    return [
        x.contiguous(),
        *(vector.contiguous() for vector in vectors),
        weight[:, 0].movedim(0, -1).contiguous(),
    ]
