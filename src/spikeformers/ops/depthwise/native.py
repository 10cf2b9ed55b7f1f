"""What is fast on a CPU: `csrc/depthwise_weight_grad.cpp`, one sum of products per tap."""

import ctypes

from torch import Tensor

from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.depthwise import reference
from spikeformers.ops.native import INT, POINTER, Kernel, dtype_code, or_else
from spikeformers.ops.spike_conv.native import Conv

_weight_grad = Kernel("depthwise_weight_grad", INT, *[POINTER] * 4)


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
