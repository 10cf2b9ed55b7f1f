"""What is fast on a CPU: additions of the rows that spikes choose, in `csrc/spike_conv*.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.native import INT, POINTER, Kernel, Unsupported, dtype_code, or_else
from spikeformers.ops.spike_conv import reference


class Conv(ctypes.Structure):
    """`struct Conv` of `csrc/conv.h`, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("images", "height", "width", "channels", "outputs"),
            *("kernel", "stride", "padding", "out_height", "out_width", "threads"),
        )
    )

    @classmethod
    def between(
        cls, x: Tensor, channels: int, y: Tensor, kernel_size: int, stride: int, padding: int
    ) -> "Conv":
        """Return the shape of a convolution from `x` to `y`, both with the channels last."""
        kernel = (kernel_size, stride, padding)
        threads = torch.get_num_threads()
        return cls(*x.shape[:3], channels, y.shape[3], *kernel, *y.shape[1:3], threads)


_forward = Kernel("spike_conv", INT, *[POINTER] * 4)
_weight_grad = Kernel("spike_conv_weight_grad", INT, *[POINTER] * 4)


@or_else(reference.spike_conv)
def spike_conv(
    bits: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
) -> Tensor:
    """See `reference.spike_conv`."""
    outputs, channels, kernel_size, _ = weight.shape
    if bits.shape[2] * channels >= 2**32:
        raise Unsupported(f"rows of {bits.shape[2]} positions with {channels} channels")
    shape = (*reference.out_shape(bits, kernel_size, stride, padding), outputs)
    y = bits.new_empty(shape, dtype=dtype)
    conv = Conv.between(bits, channels, y, kernel_size, stride, padding)
    weight = weight.to(dtype).contiguous()
    _forward(dtype_code(y), ctypes.byref(conv), bits.contiguous(), weight, y)
    return y


@or_else(reference.spike_conv_weight_grad)
def spike_conv_weight_grad(
    bits: Tensor, grad: Tensor, channels: int, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """See `reference.spike_conv_weight_grad`."""
    shape = (grad.shape[3], channels, kernel_size, kernel_size)
    grad_weight = grad.new_empty(shape, dtype=membrane_dtype(grad))
    conv = Conv.between(bits, channels, grad, kernel_size, stride, padding)
    bits, grad = bits.contiguous(), grad.contiguous()
    _weight_grad(dtype_code(grad), ctypes.byref(conv), bits, grad, grad_weight)
    return grad_weight
