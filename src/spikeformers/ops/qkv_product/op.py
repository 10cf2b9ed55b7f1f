"""What PyTorch sees: products of binary q, k and v, custom ops without autograd.

`transform/_weigh.py` joins them to what stands in front and behind.
"""

import torch
from torch import Tensor
from torch.library import register_fake

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.bits import words
from spikeformers.ops.define import custom_op
from spikeformers.ops.qkv_product import native
from spikeformers.types import ANALOG


@custom_op("spikeformers::qkv_product")
def qkv_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    channels: int,
    v_channels: int,
    heads: int,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """`scale q (k^T v)` head by head, `[n, N, v_channels]`, of spike bits `[n, N, words]`."""
    check_bits(q, k, v, channels, v_channels, heads)
    return native.qkv_product(q, k, v, channels, v_channels, heads, scale, dtype)


@custom_op("spikeformers::qkv_product_backward")
def qkv_product_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, channels: int, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the product `[n, N, v_channels]`."""
    if grad.ndim != 3 or grad.shape[:2] != q.shape[:2]:
        raise InputError(f"grad has shape {list(grad.shape)}: expected {list(q.shape[:2])} + [C]")
    check_bits(q, k, v, channels, grad.shape[2], heads)
    return native.qkv_product_backward(grad, q, k, v, channels, heads, scale)


def check_bits(q: Tensor, k: Tensor, v: Tensor, channels: int, v_channels: int, heads: int) -> None:
    """Raise `InputError` unless there are as many bits of each as heads ask for."""
    for name, bits, count in (("q", q, channels), ("k", k, channels), ("v", v, v_channels)):
        expected = (*q.shape[:2], words(count))
        if bits.ndim != 3 or bits.shape != expected or bits.dtype != torch.int64:
            raise InputError(
                f"{name} is {bits.dtype} {list(bits.shape)}: expected torch.int64 "
                f"{list(expected)} for {count} channels"
            )
        if heads < 1 or count < 1 or count % heads:
            raise InputError(f"heads={heads}: expected a divisor of the {count} channels of {name}")


@register_fake(qkv_product)
def _(
    q: Tensor,
    _k: Tensor,
    _v: Tensor,
    _channels: int,
    v_channels: int,
    _heads: int,
    _scale: float,
    dtype: torch.dtype,
) -> Tensor:
    return q.new_empty((*q.shape[:2], v_channels), dtype=dtype)


@register_fake(qkv_product_backward)
def _(
    grad: Tensor, q: Tensor, _k: Tensor, _v: Tensor, channels: int, _heads: int, _scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*q.shape[:2], channels)
    return grad.new_empty(shape), grad.new_empty(shape), grad.new_empty(grad.shape)


declare_alphabet(qkv_product, lambda *_: (ANALOG,))
declare_alphabet(qkv_product_backward, lambda *_: (ANALOG,) * 3)
