"""What is fast on a CPU: additions of the rows that spikes choose, in `csrc/qkv_product.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, dtype_code, or_else
from spikeformers.ops.qkv_product import reference

_SHAPE = INT, *[SIZE] * 5, ctypes.c_double
_forward = Kernel("qkv_product", *_SHAPE, *[POINTER] * 4)
_backward = Kernel("qkv_product_backward", *_SHAPE, *[POINTER] * 7)


@or_else(reference.qkv_product)
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
    """See `reference.qkv_product`."""
    y = q.new_empty((*q.shape[:2], v_channels), dtype=dtype)
    _forward(
        dtype_code(y),
        *(*q.shape[:2], heads, channels // heads, v_channels // heads, scale),
        *(bits.contiguous() for bits in (q, k, v)),
        y,
    )
    return y


@or_else(reference.qkv_product_backward)
def qkv_product_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, channels: int, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.qkv_product_backward`."""
    grad_q, grad_k = (grad.new_empty((*q.shape[:2], channels)) for _ in range(2))
    grad_v = torch.empty(grad.shape, dtype=grad.dtype)
    _backward(
        dtype_code(grad),
        *(*q.shape[:2], heads, channels // heads, grad.shape[2] // heads, scale),
        *(tensor.contiguous() for tensor in (q, k, v, grad)),
        *(grad_q, grad_k, grad_v),
    )
    return grad_q, grad_k, grad_v
