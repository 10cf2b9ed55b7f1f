"""What PyTorch sees: the weight gradient of a depthwise convolution, a custom op."""

import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.depthwise import native
from spikeformers.ops.spike_conv.reference import out_shape
from spikeformers.types import ANALOG


@torch.library.custom_op("spikeformers::depthwise_weight_grad", mutates_args=())
def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[C, 1, k, k]`, given `x` `[N, H, W, C]` and that of the output `[N, H', W', C]`."""
    if x.ndim != 4 or stride < 1 or padding < 0 or kernel_size < 1:
        raise InputError(
            f"x has shape {list(x.shape)}, kernel_size={kernel_size}, stride={stride}, "
            f"padding={padding}: expected [N, H, W, C] and a convolution"
        )
    expected = (*out_shape(x, kernel_size, stride, padding), x.shape[3])
    if grad.shape != expected or grad.dtype != x.dtype:
        raise InputError(
            f"grad is {grad.dtype} {list(grad.shape)}: expected {x.dtype} {list(expected)}"
        )
    return native.depthwise_weight_grad(x, grad, kernel_size, stride, padding)


@depthwise_weight_grad.register_fake
def _(x: Tensor, _grad: Tensor, kernel_size: int, _stride: int, _padding: int) -> Tensor:
    shape = (x.shape[3], 1, kernel_size, kernel_size)
    return x.new_empty(shape, dtype=membrane_dtype(x))


declare_alphabet(depthwise_weight_grad, lambda *_: (ANALOG,))
