"""What is true: `scale q (k^T v)` head by head, of spikes as bits, and its gradient.

    y = scale q k^T v
    grad_q = scale g v^T k,    grad_k = scale v g^T q,    grad_v = scale k q^T g

with `g` the gradient of `y`. Bits are `[n, N, words]`, for `n` images of `N` tokens; q and k have
`channels`, v has `v_channels`, and a head is a range of them. 16-bit tensors are computed with in
float32.
"""

import torch
from torch import Tensor

from spikeformers.ops.bits import unpack
from spikeformers.ops.checks import membrane_dtype


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
    """Return `y`, `[n, N, v_channels]`."""
    wide = membrane_dtype(q.new_empty(0, dtype=dtype))
    q, k = (_heads(unpack(bits, channels, wide), heads) for bits in (q, k))
    v = _heads(unpack(v, v_channels, wide), heads)
    return _rows(q @ (k.mT @ v * scale)).to(dtype)


def qkv_product_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, channels: int, heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, given that of `y`."""
    wide = membrane_dtype(grad)
    q, k = (_heads(unpack(bits, channels, wide), heads) for bits in (q, k))
    v = _heads(unpack(v, grad.shape[2], wide), heads)
    g = _heads(grad.to(wide), heads)
    grads = g @ (v.mT @ k * scale), v @ (g.mT @ q * scale), k @ (q.mT @ g * scale)
    grad_q, grad_k, grad_v = (_rows(x).to(grad.dtype) for x in grads)
    return grad_q, grad_k, grad_v


def _heads(rows: Tensor, heads: int) -> Tensor:
    """`[n, N, C]` -> `[n, h, N, d]`."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """`[n, h, N, d]` -> `[n, N, C]`."""
    return x.transpose(1, 2).flatten(2)
