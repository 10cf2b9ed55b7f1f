"""What is fast without a compiler: the reference's loop, in place and without temporaries.

It serves every device that has no kernel of its own. Spikes and membranes equal the reference's
bit for bit; the gradients are for fixed decay, fixed threshold and a detached reset, which is how
nearly all published networks train.
"""

import torch
from torch import Tensor

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
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes `[T, ...]`, final membrane `[...]` and the membrane before each reset `[T, ...]`."""
    decay, v_threshold = along_channels(decay, x[0]), along_channels(v_threshold, x[0])
    rest, gain = v_reset or 0.0, 1 - decay
    h = torch.empty_like(x, dtype=decay.dtype)
    spikes = torch.empty_like(x)
    v = torch.full_like(h[0], rest) if v0 is None else v0.clone()
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
    return spikes, v, h


def lif_backward(
    grad_spikes: Tensor,
    grad_v: Tensor,
    h: Tensor,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` `[T, ...]` and of `v0` `[...]`."""
    decay, v_threshold = along_channels(decay, h[0]), along_channels(v_threshold, h[0])
    derivative, stays = SURROGATES[surrogate].derivative, torch.le if strict else torch.lt
    grad_x = torch.empty_like(h)
    for h_t, grad_s, grad_x_t in reversed(list(zip(h, grad_spikes, grad_x, strict=True))):
        u = h_t - v_threshold
        grad_h = derivative(u, alpha).mul_(grad_s)
        if v_reset is None:
            grad_h.add_(grad_v)
        else:
            grad_h.addcmul_(grad_v, stays(u, 0, out=u))
        grad_v = grad_h * decay
        if decay_input:
            torch.sub(grad_h, grad_v, out=grad_x_t)
        else:
            grad_x_t.copy_(grad_h)
    return grad_x, grad_v
