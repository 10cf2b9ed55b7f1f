"""What PyTorch sees: a dense convolution with 3x3 kernels, a custom op."""

from torch import Tensor
from torch.library import register_fake

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.define import custom_op
from spikeformers.ops.spike_conv.reference import out_shape
from spikeformers.ops.winograd import native
from spikeformers.types import ANALOG


@custom_op("spikeformers::winograd_conv")
def winograd_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Outputs `[N, H', W', O]` of `x` `[N, H, W, C]` and weights `[O, C, 3, 3]`."""
    if x.ndim != 4 or padding < 0 or min(x.shape[1:3]) + 2 * padding < 3:
        raise InputError(
            f"x has shape {list(x.shape)}, padding={padding}: expected [N, H, W, C] that 3x3 "
            "kernels fit into"
        )
    fits = weight.shape[1:] == (x.shape[3], 3, 3) and weight.numel() > 0
    if not fits or weight.dtype != x.dtype:
        raise InputError(
            f"weight is {weight.dtype} {list(weight.shape)}: expected {x.dtype} "
            f"[O, {x.shape[3]}, 3, 3]"
        )
    return native.winograd_conv(x, weight, padding)


@register_fake(winograd_conv)
def _(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return x.new_empty((*out_shape(x, 3, 1, padding), weight.shape[0]))


declare_alphabet(winograd_conv, lambda *_: (ANALOG,))
