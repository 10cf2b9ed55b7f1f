"""What is true: the integer leaky integrate-and-fire neuron as a plain loop over time.

    u[t] = decay v[t-1] + x[t]
    l[t] = u[t] / v_threshold
    s[t] = round(clip(l[t], 0, levels))
    v[t] = u[t] - v_threshold s[t]         s detached: the gradient does not see the reset

`rounding` says where exact halves go, and with it where the gradient of `s` by `l` is 1 (it is 0
elsewhere), as the two published forms have it:

    half_even    torch.round       0 <= l <= levels
    half_up      floor(l + 0.5)    0 <  l <  levels

The first function is differentiable by plain autograd; the second is its gradient written out.
"""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype

ROUNDINGS = ("half_even", "half_up")


class Fire(torch.autograd.Function):
    """The nearest integer in `0..levels`, with a straight-through gradient, for plain autograd."""

    @staticmethod
    def forward(ctx: Any, level: Tensor, levels: int, rounding: str) -> Tensor:
        """Clip, then round."""
        ctx.save_for_backward(level)
        ctx.levels, ctx.rounding = levels, rounding
        clipped = level.clamp(0, levels)
        return clipped.round() if rounding == "half_even" else (clipped + 0.5).floor()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Let the gradient pass inside the interval."""
        (level,) = ctx.saved_tensors
        return grads[0] * passes(level, ctx.levels, ctx.rounding), None, None


def passes(level: Tensor, levels: int, rounding: str) -> Tensor:
    """Where the gradient passes, as booleans."""
    if rounding == "half_even":
        return (level >= 0) & (level <= levels)
    return (level > 0) & (level < levels)


def ilif_forward(
    x: Tensor,
    v0: Tensor | None,
    levels: int,
    decay: float,
    rounding: str,
    v_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers `[T, ...]`, final membrane `[...]` and where the gradient passes, `[T, ...]`."""
    v = torch.zeros_like(x[0], dtype=membrane_dtype(x)) if v0 is None else v0
    integers, level = [], []
    for current in x.to(v.dtype):
        u = decay * v + current
        level.append(u / v_threshold)
        integers.append(Fire.apply(level[-1], levels, rounding))
        v = u - v_threshold * integers[-1].detach()
    return torch.stack(integers).to(x.dtype), v, passes(torch.stack(level), levels, rounding)


def ilif_burst_forward(
    x: Tensor, v0: Tensor | None, levels: int, decay: float, rounding: str, v_threshold: float
) -> tuple[Tensor, Tensor]:
    """Binary spikes `[T*levels, ...]` of the integers of windows of currents, and the membrane."""
    windows = x.unflatten(0, (-1, levels)).sum(1)
    integers, v, _ = ilif_forward(windows, v0, levels, decay, rounding, v_threshold)
    sub_steps = torch.arange(levels, device=x.device).view(-1, *[1] * (x.ndim - 1))
    return (integers[:, None] > sub_steps).to(x.dtype).flatten(0, 1), v


def ilif_backward(
    grad_integers: Tensor, grad_v: Tensor, passing: Tensor, decay: float, v_threshold: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` `[T, ...]` and of `v0` `[...]`."""
    grads = []
    grad_levels = grad_integers.to(grad_v.dtype) * passing / v_threshold
    for grad_u in grad_levels.flip(0):
        grads.append(grad_u + grad_v)
        grad_v = decay * grads[-1]
    return torch.stack(grads[::-1]), grad_v
