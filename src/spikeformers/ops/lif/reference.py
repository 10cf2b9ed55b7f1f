"""What is true: the leaky integrate-and-fire neuron as a plain loop over time.

    h[t] = v[t-1] + (1 - decay) (x[t] - (v[t-1] - v_rest))     decay_input=True
    h[t] = v_rest + decay (v[t-1] - v_rest) + x[t]             decay_input=False
    s[t] = 1 if h[t] >= v_threshold else 0                     strict: >
    v[t] = h[t] (1 - s[t]) + v_reset s[t]                      hard reset, v_rest = v_reset
    v[t] = h[t] - v_threshold s[t]                             v_reset=None: soft reset, v_rest = 0

With `decay = 1 - 1/tau` this is the LIF neuron, with `decay = 1, decay_input=False` the IF neuron.
The first function is differentiable by plain autograd; the second is its gradient written out.
"""

import torch
from torch import Tensor

from spikeformers.ops.surrogate import SURROGATES, Fire, fires


def along_channels(parameter: Tensor, step: Tensor) -> Tensor:
    """Let a 0-dim or `[C]` parameter broadcast over a step `[B, C, ...]`."""
    return parameter if parameter.ndim == 0 else parameter.view(-1, *[1] * (step.ndim - 2))


def lif_forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes `[T, ...]`, final membrane `[...]` and the membrane before each reset `[T, ...]`."""
    decay, v_threshold = along_channels(decay, x[0]), along_channels(v_threshold, x[0])
    rest = v_reset or 0.0
    v = torch.full_like(x[0], rest, dtype=decay.dtype) if v0 is None else v0
    spikes, h = [], []
    for current in x.to(decay.dtype):
        if decay_input:
            v = v + (1 - decay) * (current - (v - rest))
        else:
            v = rest + decay * (v - rest) + current
        h.append(v)
        spikes.append(Fire.apply(v - v_threshold, surrogate, alpha, strict))
        s = spikes[-1].detach() if detach_reset else spikes[-1]
        v = v - v_threshold * s if v_reset is None else v * (1 - s) + v_reset * s
    return torch.stack(spikes).to(x.dtype), v, torch.stack(h)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x`, `v0` and, one per element of `x`, of `decay` and `v_threshold`.

    The membrane is computed again: it need not be kept from the forward pass.
    """
    options = (v_reset, decay_input, detach_reset, surrogate, alpha, strict)
    h = lif_forward(x, v0, decay, v_threshold, *options)[2]
    decay, v_threshold = along_channels(decay, h[0]), along_channels(v_threshold, h[0])
    u = h - v_threshold
    s, slope = fires(u, strict), SURROGATES[surrogate].derivative(u, alpha)
    through = torch.zeros_like(slope) if detach_reset else slope
    if v_reset is None:
        v = h - v_threshold * s
        dv_dh, dv_dthreshold = 1 - v_threshold * through, v_threshold * through - s
    else:
        v = h * (1 - s) + v_reset * s
        dv_dh, dv_dthreshold = 1 - s + (v_reset - h) * through, (h - v_reset) * through

    grad_fired = grad_spikes.to(h.dtype) * slope
    grads_h, grads_threshold = [], []
    for t in reversed(range(len(h))):
        grads_h.append(grad_fired[t] + grad_v * dv_dh[t])
        grads_threshold.append(grad_v * dv_dthreshold[t] - grad_fired[t])
        grad_v = grads_h[-1] * decay
    grad_h, grad_threshold = torch.stack(grads_h[::-1]), torch.stack(grads_threshold[::-1])
    grad_x = grad_h * (1 - decay) if decay_input else grad_h
    rest = v_reset or 0.0
    first = torch.full_like(v[:1], rest) if v0 is None else v0[None]
    above_rest = torch.cat([first, v[:-1]]) - rest
    grad_decay = grad_h * (above_rest - x.to(h.dtype) if decay_input else above_rest)
    return grad_x.to(x.dtype), grad_v, grad_decay, grad_threshold
