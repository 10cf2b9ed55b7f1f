"""What is true: batch norms in a row as one affine map `gain y + offset` of what the first one saw.

    x_0 = y + bias
    x_i = scale_i (x_{i-1} - mean_i) + bias_i,    scale_i = weight_i / sqrt(var_i + eps_i)

Every `x` is an affine map of `y`, so its moments follow from those of `y`: `gain mean + offset` and
`gain^2 var`. A norm in training mode takes them, and moves its running statistics towards them;
any other one takes its running statistics. All is computed in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype


class Norm(NamedTuple):
    """A batch norm; `momentum` is the weight of this batch in the running statistics."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    momentum: float
    training: bool


class Moments(NamedTuple):
    """Mean and (biased) variance `[C]` of `total` numbers per channel."""

    mean: Tensor
    var: Tensor
    total: float


class Folded(NamedTuple):
    """The affine map of norms in a row.

    Attributes:
        gain: `[C]`.
        offset: `[C]`.
        tape: `[norms, 4, C]` in float64, for the way back: the gain in front of each norm, the
            offset there less the mean, the scale, and one over the standard deviation.
    """

    gain: Tensor
    offset: Tensor
    tape: Tensor


@torch.no_grad()
def fold_norms(norms: Sequence[Norm], bias: Tensor | None, moments: Moments | None) -> Folded:
    """Fold norms in a row, and move the running statistics of those in training mode.

    Args:
        norms: In order.
        bias: Is added to `y` in front of them.
        moments: Those of `y`; needed if a norm is in training mode.
    """
    like = norms[0].weight
    gain = torch.ones_like(like, dtype=torch.float64)
    offset = torch.zeros_like(gain) if bias is None else bias.double()
    tape = []
    for norm in norms:
        mean, var = norm.running_mean.double(), norm.running_var.double()
        if norm.training:
            assert moments is not None
            mean, var = gain * moments.mean + offset, gain.square() * moments.var
            # One value per channel has no variance; the running one then learns that it is 0.
            unbiased = var * (moments.total / max(moments.total - 1, 1))
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
        inverse = torch.rsqrt(var + norm.eps)
        scale, centred = norm.weight * inverse, offset - mean
        tape.append(torch.stack([gain, centred, scale, inverse]))
        gain, offset = gain * scale, centred * scale + norm.bias
    wide = membrane_dtype(like)
    return Folded(gain.to(wide), offset.to(wide), torch.stack(tape))


def fold_norms_backward(
    grad_gain: Tensor,
    grad_offset: Tensor,
    training: Sequence[bool],
    moments: Moments | None,
    tape: Tensor,
) -> tuple[Tensor, Tensor]:
    """Go back from gain and offset to the parameters and, through the moments, to `y`.

    Args:
        grad_gain: `[C]`.
        grad_offset: `[C]`.
        training: Which norms were in training mode.
        moments: Those of `y`, if one was.
        tape: See `Folded`.

    Returns:
        Gradients `[2 norms + 1, C]` of weight and bias of each norm in turn, and of the bias in
        front of all; and slope and level, `[2, C]`: the moments add `slope y + level` to the
        gradient of `y`.
    """
    gain_grad, offset_grad = grad_gain.double(), grad_offset.double()
    mean_grad, var_grad = torch.zeros_like(gain_grad), torch.zeros_like(gain_grad)
    grads = []
    for (gain, centred, scale, inverse), trains in zip(
        reversed(tape.unbind()), reversed(training), strict=True
    ):
        grad_scale = gain_grad * gain + offset_grad * centred
        grads += [offset_grad, grad_scale * inverse]
        gain_grad, offset_grad = gain_grad * scale, offset_grad * scale
        if trains:
            assert moments is not None
            grad_var = -grad_scale * scale * inverse.square() / 2
            gain_grad = gain_grad - offset_grad * moments.mean + 2 * gain * moments.var * grad_var
            mean_grad = mean_grad - offset_grad * gain
            var_grad = var_grad + gain.square() * grad_var
            offset_grad = torch.zeros_like(offset_grad)  # a mean takes every offset away
    through = torch.stack([mean_grad, var_grad])
    if moments is not None:
        slope = 2 * var_grad / moments.total
        through = torch.stack([slope, mean_grad / moments.total - slope * moments.mean])
    found = torch.stack([*reversed(grads), offset_grad])
    return found.to(grad_gain.dtype), through.to(grad_gain.dtype)
