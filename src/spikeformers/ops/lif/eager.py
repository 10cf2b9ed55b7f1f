"""What is fast without a compiler: the reference's loop, in place and without temporaries.

It serves every device that has no kernel of its own. Spikes and membranes equal the reference's
bit for bit. Gradients are fast for fixed decay, fixed threshold and a detached reset, which is how
nearly all published networks train; the others are left to the reference.
"""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.checks import laid_out_like
from spikeformers.ops.lif import reference
from spikeformers.ops.lif.reference import along_channels
from spikeformers.ops.surrogate import SURROGATES


def lif_forward(
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Spikes `[T, ...]` and final membrane `[...]`."""
    # One step of memory, used again at every step.
    h = torch.empty_like(x[0], dtype=decay.dtype).expand(x.shape)
    return _integrate(x, v0, h, decay, v_threshold, v_reset, decay_input, strict)


def _integrate(
    x: Tensor,
    v0: Tensor | None,
    h: Tensor,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Spikes and final membrane; the membranes before each reset are written to `h`."""
    decay, v_threshold = along_channels(decay, x[0]), along_channels(v_threshold, x[0])
    rest, gain = v_reset or 0.0, 1 - decay
    spikes = torch.empty_like(x)
    v = torch.full_like(h[0], rest) if v0 is None else torch.empty_like(h[0]).copy_(v0)
    fires = torch.gt if strict else torch.ge
    for current, h_t, s_t in zip(x.to(decay.dtype), h, spikes, strict=True):
        above_rest = v - rest if rest else v
        if decay_input:
            torch.sub(current, above_rest, out=h_t).mul_(gain).add_(v)
        else:
            torch.mul(above_rest, decay, out=h_t).add_(rest).add_(current)
        fires(h_t, v_threshold, out=s_t)
        if v_reset is None:
            torch.sub(h_t, s_t.to(h.dtype) * v_threshold, out=v)
        else:
            torch.sub(h_t, torch.mul(h_t, s_t, out=v), out=v)
            if v_reset:
                v.add_(s_t, alpha=v_reset)
    return spikes, v


def lif_backward(
    grad_spikes: Tensor,
    grad_v: Tensor,
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
    learns_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x`, `v0`, and of `decay` and `v_threshold`, zeros where they are fixed."""
    if learns_parameters or not detach_reset:
        options = (v_reset, decay_input, detach_reset, surrogate, alpha, strict)
        grads = summed_gradients(grad_spikes, grad_v, x, v0, decay, v_threshold, *options)
        return laid_out_like(grads[0], x), laid_out_like(grads[1], x[0]), *grads[2:]
    h = torch.empty_like(x, dtype=decay.dtype)
    _integrate(x, v0, h, decay, v_threshold, v_reset, decay_input, strict)
    no_grads = torch.zeros_like(decay), torch.zeros_like(v_threshold)
    decay, v_threshold = along_channels(decay, h[0]), along_channels(v_threshold, h[0])
    derivative, stays = SURROGATES[surrogate].derivative, torch.le if strict else torch.lt
    grad_x = torch.empty_like(x)
    for h_t, grad_s, grad_x_t in reversed(list(zip(h, grad_spikes, grad_x, strict=True))):
        u = h_t - v_threshold
        grad_h = derivative(u, alpha).mul_(grad_s)
        if v_reset is None:
            grad_h.add_(grad_v)
        else:
            grad_h.addcmul_(grad_v, stays(u, 0, out=u))
        grad_v = torch.mul(grad_h, decay, out=u)
        if decay_input:
            grad_h.sub_(grad_v)
        grad_x_t.copy_(grad_h)
    return grad_x, grad_v, *no_grads


def summed_gradients(
    grad_spikes: Tensor,
    grad_v: Tensor,
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the reference's gradients, each in the shape of its argument."""
    grad_x, grad_v0, grad_decay, grad_threshold = reference.lif_backward(
        grad_spikes, grad_v, x, v0, decay, v_threshold, *options
    )
    return grad_x, grad_v0, _sum_like(grad_decay, decay), _sum_like(grad_threshold, v_threshold)


def _sum_like(grad: Tensor, parameter: Tensor) -> Tensor:
    """Sum the elementwise gradient `[T, B, C, ...]` over all axes that the parameter lacks."""
    if parameter.ndim == 0:
        return grad.sum()
    return grad.transpose(0, 2).flatten(1).sum(1)
