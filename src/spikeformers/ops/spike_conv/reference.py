"""What is true: a convolution of spikes, and the gradient of its weights, from spike bits.

    y[n, v, u, o]  = sum over i, a, b of weight[o, i, a, b] s[n, v r + a - p, u r + b - p, i]
    grad[o, i, a, b] = sum over n, v, u of grad_y[n, v, u, o] s[n, v r + a - p, u r + b - p, i]

with stride `r` and padding `p`. A spike `s` is 0 or 1, so both are sums of rows, of weights or of
gradients, chosen by spikes. 16-bit outputs are sums in float32 of rounded weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from spikeformers.ops.bits import unpack
from spikeformers.ops.checks import membrane_dtype


def out_shape(x: Tensor, kernel_size: int, stride: int, padding: int) -> tuple[int, ...]:
    """Images, height and width of what a convolution makes of `x` `[N, H, W, ...]`."""
    n, *image = x.shape[:3]
    return n, *((size + 2 * padding - kernel_size) // stride + 1 for size in image)


def spike_conv(
    bits: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
) -> Tensor:
    """Currents `[N, H', W', O]` of spike bits `[N, H, W, words]` and weights `[O, I, k, k]`."""
    spikes = unpack(bits, weight.shape[1], dtype).permute(0, 3, 1, 2)
    y = F.conv2d(spikes, weight.to(dtype), stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).contiguous()


def spike_conv_weight_grad(
    bits: Tensor, grad: Tensor, channels: int, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Gradient `[O, I, k, k]` of the weights, given that of the currents `[N, H', W', O]`."""
    wide = grad.to(membrane_dtype(grad)).permute(0, 3, 1, 2)
    spikes = unpack(bits, channels, wide.dtype).permute(0, 3, 1, 2)
    shape = (grad.shape[-1], channels, kernel_size, kernel_size)
    return conv2d_weight(spikes, shape, wide, stride, padding).contiguous()
