"""What PyTorch sees: custom ops around depthwise convolutions, without autograd.

`transform/_weigh.py` joins them to what stands in front and behind.
"""

import torch
from torch import Tensor
from torch.library import register_fake

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.depthwise import native
from spikeformers.ops.spike_conv.op import check_conv
from spikeformers.ops.spike_conv.reference import out_shape
from spikeformers.types import ANALOG


@custom_op("spikeformers::depthwise_conv")
def depthwise_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Outputs `[N, H', W', C]` of `x` `[N, H, W, C]` and weights `[C, 1, k, k]`."""
    check_kernel(x, weight, padding)
    if len(weight) != x.shape[3]:
        raise InputError(f"weight is for {len(weight)} channels: expected {x.shape[3]}")
    return native.depthwise_conv(x, weight, padding)


@custom_op("spikeformers::spike_depthwise_conv")
def spike_depthwise_conv(bits: Tensor, weight: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """Outputs `[N, H', W', C]` of spike bits `[N, H, W, words]` and weights `[C, 1, k, k]`."""
    check_kernel(bits, weight, padding)
    check_conv(bits, len(weight), weight.shape[-1], 1, padding)
    return native.spike_depthwise_conv(bits, weight, padding, dtype)


@custom_op("spikeformers::depthwise_weight_grad")
def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[C, 1, k, k]`, given `x` `[N, H, W, C]` and that of the output `[N, H', W', C]`."""
    if x.ndim != 4 or stride < 1 or padding < 0 or kernel_size < 1:
        raise InputError(
            f"x has shape {list(x.shape)}, kernel_size={kernel_size}, stride={stride}, "
            f"padding={padding}: expected [N, H, W, C] and a convolution"
        )
    check_gradient(grad, x, (*out_shape(x, kernel_size, stride, padding), x.shape[3]))
    return native.depthwise_weight_grad(x, grad, kernel_size, stride, padding)


@custom_op("spikeformers::spike_depthwise_weight_grad")
def spike_depthwise_weight_grad(
    bits: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[C, 1, k, k]`, given spike bits `[N, H, W, words]` and that of the output."""
    check_conv(bits, grad.shape[-1], kernel_size, stride, padding)
    expected = out_shape(bits, kernel_size, stride, padding)
    if grad.shape[:-1] != expected:
        raise InputError(f"grad has shape {list(grad.shape)}: expected {list(expected)} + [C]")
    return native.spike_depthwise_weight_grad(bits, grad, kernel_size, stride, padding)


@custom_op("spikeformers::framed_depthwise")
def framed_depthwise(
    x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> Tensor:
    """Convolve `gain x + offset`, surrounded by `border`: `[N, H, W, C]` -> `[N, H, W, C]`."""
    check_frame(x, gain, offset, border, weight)
    return native.framed_depthwise(x, gain, offset, border, weight)


@custom_op("spikeformers::framed_depthwise_backward")
def framed_depthwise_backward(
    grad: Tensor, x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gain x + offset` (`[N, H, W, C]`), of `gain`, `offset` and `weight`."""
    check_frame(x, gain, offset, border, weight)
    check_gradient(grad, x, tuple(x.shape))
    return native.framed_depthwise_backward(grad, x, gain, offset, border, weight)


def check_kernel(x: Tensor, weight: Tensor, padding: int) -> None:
    """Raise `InputError` unless images, a square kernel per channel and a padding fit together."""
    is_kernel = weight.ndim == 4 and weight.shape[1] == 1 and weight.shape[2] == weight.shape[3]
    fits = x.ndim == 4 and min(x.shape[1:3]) + 2 * padding >= weight.shape[-1] > 0
    if not is_kernel or not fits or padding < 0:
        raise InputError(
            f"x has shape {list(x.shape)}, weight {list(weight.shape)}, padding={padding}: "
            "expected [N, H, W, C] that kernels [C, 1, k, k] fit into"
        )


def check_gradient(grad: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless a gradient has this shape and the dtype of `x`."""
    if grad.shape != shape or grad.dtype != x.dtype:
        raise InputError(
            f"grad is {grad.dtype} {list(grad.shape)}: expected {x.dtype} {list(shape)}"
        )


def check_frame(x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor) -> None:
    """Raise `InputError` unless a map has a vector of each kind and a kernel with a centre."""
    side = weight.shape[-1]
    if x.ndim != 4 or side % 2 == 0 or weight.shape != (x.shape[3], 1, side, side):
        raise InputError(
            f"x has shape {list(x.shape)}, weight {list(weight.shape)}: expected [N, H, W, C] and "
            "[C, 1, k, k] with an odd k"
        )
    for name, vector in (("gain", gain), ("offset", offset), ("border", border)):
        if vector.shape != x.shape[3:]:
            raise InputError(f"{name} has shape {list(vector.shape)}: expected [{x.shape[3]}]")


@register_fake(depthwise_conv)
def _(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return x.new_empty((*out_shape(x, weight.shape[-1], 1, padding), len(weight)))


@register_fake(spike_depthwise_conv)
def _(bits: Tensor, weight: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    shape = (*out_shape(bits, weight.shape[-1], 1, padding), len(weight))
    return bits.new_empty(shape, dtype=dtype)


@register_fake(depthwise_weight_grad)
@register_fake(spike_depthwise_weight_grad)
def _(_seen: Tensor, grad: Tensor, kernel_size: int, _stride: int, _padding: int) -> Tensor:
    shape = (grad.shape[3], 1, kernel_size, kernel_size)
    return grad.new_empty(shape, dtype=membrane_dtype(grad))


@register_fake(framed_depthwise)
def _(x: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@register_fake(framed_depthwise_backward)
def _(
    _grad: Tensor, x: Tensor, gain: Tensor, _offset: Tensor, _border: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_gain = x.new_empty(gain.shape, dtype=membrane_dtype(x))
    of_weight = of_gain.new_empty(weight.shape)
    return x.new_empty(x.shape), of_gain, torch.empty_like(of_gain), of_weight


for _op, _outputs in (
    (depthwise_conv, 1),
    (spike_depthwise_conv, 1),
    (depthwise_weight_grad, 1),
    (spike_depthwise_weight_grad, 1),
    (framed_depthwise, 1),
    (framed_depthwise_backward, 4),
):
    declare_alphabet(_op, lambda *_, count=_outputs: (ANALOG,) * count)
