"""What is true: the weight gradient of a depthwise convolution, with the channels last.

    grad[c, 0, a, b] = sum over n, v, u of grad_y[n, v, u, c] x[n, v r + a - p, u r + b - p, c]

with stride `r` and padding `p`. 16-bit tensors are computed with in float32.
"""

from torch import Tensor
from torch.nn.grad import conv2d_weight

from spikeformers.ops.checks import membrane_dtype


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
