"""What PyTorch sees: the convolution of spike bits and the gradient of its weights, custom ops."""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.bits import words
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.spike_conv import native
from spikeformers.ops.spike_conv.reference import out_shape
from spikeformers.types import ANALOG


@custom_op("spikeformers::spike_conv")
def spike_conv(
    bits: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
) -> Tensor:
    """Currents `[N, H', W', O]` of spike bits `[N, H, W, words]` and weights `[O, I, k, k]`."""
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise InputError(f"weight has shape {list(weight.shape)}: expected [O, I, k, k]")
    check_conv(bits, weight.shape[1], weight.shape[2], stride, padding)
    return native.spike_conv(bits, weight, stride, padding, dtype)


@custom_op("spikeformers::spike_conv_weight_grad")
def spike_conv_weight_grad(
    bits: Tensor, grad: Tensor, channels: int, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[O, I, k, k]` of the weights, given that of the currents `[N, H', W', O]`."""
    check_conv(bits, channels, kernel_size, stride, padding)
    expected = out_shape(bits, kernel_size, stride, padding)
    if grad.shape[:-1] != expected:
        raise InputError(f"grad has shape {list(grad.shape)}: expected {list(expected)} + [O]")
    return native.spike_conv_weight_grad(bits, grad, channels, kernel_size, stride, padding)


def check_conv(bits: Tensor, channels: int, kernel_size: int, stride: int, padding: int) -> None:
    """Raise `InputError` unless the bits hold that many channels and the kernel fits in."""
    if bits.ndim != 4 or bits.shape[3] != words(channels) or bits.dtype != torch.int64:
        raise InputError(
            f"bits is {bits.dtype} {list(bits.shape)}: expected torch.int64 "
            f"[N, H, W, {words(channels)}] for {channels} channels"
        )
    fits = min(bits.shape[1:3]) + 2 * padding >= kernel_size >= 1
    if not fits or channels < 1 or stride < 1 or padding < 0:
        raise InputError(
            f"channels={channels}, kernel_size={kernel_size}, stride={stride}, padding={padding}: "
            f"expected a kernel that fits into the padded bits {list(bits.shape)}"
        )


@register_fake(spike_conv)
def _(bits: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    shape = out_shape(bits, weight.shape[2], stride, padding)
    return weight.new_empty((*shape, weight.shape[0]), dtype=dtype)


@register_fake(spike_conv_weight_grad)
def _(
    _bits: Tensor, grad: Tensor, channels: int, kernel_size: int, _stride: int, _padding: int
) -> Tensor:
    shape = (grad.shape[-1], channels, kernel_size, kernel_size)
    return grad.new_empty(shape, dtype=membrane_dtype(grad))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    bits, weight, ctx.stride, ctx.padding, _ = inputs
    ctx.save_for_backward(bits)
    ctx.weight_shape, ctx.weight_dtype = weight.shape, weight.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (bits,) = ctx.saved_tensors
    _, channels, kernel_size, _ = ctx.weight_shape
    grad_weight = spike_conv_weight_grad(bits, grad, channels, kernel_size, ctx.stride, ctx.padding)
    return None, grad_weight.to(ctx.weight_dtype), None, None, None


register_autograd(spike_conv, _backward, setup_context=_setup_context)
for _op in (spike_conv, spike_conv_weight_grad):
    declare_alphabet(_op, lambda *_: (ANALOG,))
