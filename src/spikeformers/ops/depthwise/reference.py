"""What is true: depthwise convolutions with the channels last, and their gradients.

    y[n, v, u, c]    = sum over a, b of weight[c, 0, a, b] x[n, v r + a - p, u r + b - p, c]
    grad[c, 0, a, b] = sum over n, v, u of grad_y[n, v, u, c] x[n, v r + a - p, u r + b - p, c]

with stride `r` and padding `p`. A framed convolution sees `gain x + offset` instead, with a border
that has a value per channel where others have zeros; it leaves the size of maps as it is, `r = 1`
and `p = (k - 1) / 2`. Spikes, as bits, are seen as the numbers 0 and 1. 16-bit tensors are computed
with in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from spikeformers.ops.bits import unpack
from spikeformers.ops.checks import membrane_dtype


def depthwise_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Outputs `[N, H', W', C]` of `x` `[N, H, W, C]` and weights `[C, 1, k, k]`."""
    wide = membrane_dtype(x)
    images = x.to(wide).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight.to(wide), padding=padding, groups=len(weight))
    return y.permute(0, 2, 3, 1).to(x.dtype).contiguous()


def spike_depthwise_conv(bits: Tensor, weight: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """Outputs `[N, H', W', C]` of spike bits `[N, H, W, words]`."""
    return depthwise_conv(unpack(bits, len(weight), dtype), weight, padding)


def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[C, 1, k, k]`, given `x` `[N, H, W, C]` and that of the output `[N, H', W', C]`."""
    wide = membrane_dtype(x)
    channels = x.shape[3]
    return conv2d_weight(
        x.to(wide).permute(0, 3, 1, 2),
        (channels, 1, kernel_size, kernel_size),
        grad.to(wide).permute(0, 3, 1, 2),
        stride,
        padding,
        groups=channels,
    ).contiguous()


def spike_depthwise_weight_grad(
    bits: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[C, 1, k, k]`, given spike bits `[N, H, W, words]`."""
    spikes = unpack(bits, grad.shape[3], grad.dtype)
    return depthwise_weight_grad(spikes, grad, kernel_size, stride, padding)


def framed_depthwise(
    x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> Tensor:
    """Return the convolution `[N, H, W, C]` of `gain x + offset` within a border."""
    framed = _framed(x, gain, offset, border, weight.shape[-1] // 2)
    return depthwise_conv(framed, weight, 0).to(x.dtype)


def framed_depthwise_backward(
    grad: Tensor, x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gain x + offset` `[N, H, W, C]`, of `gain`, `offset` and `weight`."""
    padding = weight.shape[-1] // 2
    framed = _framed(x, gain, offset, border, padding)
    wide = grad.to(framed.dtype).permute(0, 3, 1, 2)
    grad_framed = conv2d_input(
        framed.permute(0, 3, 1, 2).shape, weight.to(wide.dtype), wide, groups=len(weight)
    )
    inside = grad_framed.permute(0, 2, 3, 1)[
        :, padding : -padding or None, padding : -padding or None
    ]
    return (
        inside.to(x.dtype).contiguous(),
        (inside * x).sum((0, 1, 2)),
        inside.sum((0, 1, 2)),
        depthwise_weight_grad(framed, wide.permute(0, 2, 3, 1), weight.shape[-1], 1, 0),
    )


def _framed(x: Tensor, gain: Tensor, offset: Tensor, border: Tensor, padding: int) -> Tensor:
    """`[N, H, W, C]` -> `[N, H+2p, W+2p, C]`."""
    inside = gain * x.to(membrane_dtype(x)) + offset
    n, height, width, channels = x.shape
    framed = border.expand(n, height + 2 * padding, width + 2 * padding, channels).clone()
    framed[:, padding : padding + height, padding : padding + width] = inside
    return framed
