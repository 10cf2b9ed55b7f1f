"""What is true: neurons that fire step by step and learn from what all their spikes stand for.

    h[t] = v[t-1] + x[t]                     tau=None: IF, and dt = 1
    h[t] = b v[t-1] + (1 - b) x[t]           LIF, b = exp(-dt / tau)
    s[t] = 1 if h[t] >= alpha v_threshold else 0
    v[t] = h[t] - v_threshold s[t]
    y[t] = v_threshold / dt s[t]

Values over time represent `r(z)`, their mean for IF, their mean weighted by `b ** (T - t)` for LIF.
Over many steps a neuron clips what its current represents:

    r(y) = clip(r(x) / tau, 0, v_threshold / dt)          IF: without tau

This function, not the steps, is differentiated. Every step receives the same gradient:

    grad_x[t] = r(grad_y) / tau                           where r(x) is inside the clip
    grad_v_threshold = dt sum(T r(grad_y))                where r(x) is above it

The ends are inside for IF only. The factor `dt` is the authors'; the clip has `1 / dt`. No gradient
passes through the membrane.
"""

import math

import torch
from torch import Tensor

from spikeformers.ops.checks import membrane_dtype


def represent(z: Tensor, tau: float | None, dt: float) -> Tensor:
    """Return what values over time stand for, `[T, ...]` -> `[...]`."""
    if tau is None:
        return z.mean(0)
    ages = torch.arange(len(z) - 1, -1, -1, dtype=z.dtype, device=z.device)
    weights = torch.exp(-dt / tau * ages)
    return torch.tensordot(weights / weights.sum(), z, 1)


def dsr_forward(
    x: Tensor,
    v0: Tensor | None,
    v_threshold: Tensor,
    alpha: float,
    tau: float | None,
    dt: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output `[T, ...]`, final membrane, and where `r(x)` is inside the clip and above it."""
    currents = x.to(membrane_dtype(x))
    decay = 1.0 if tau is None else math.exp(-dt / tau)
    gain = 1.0 if tau is None else 1 - decay
    v = torch.zeros_like(currents[0]) if v0 is None else v0
    spikes = []
    for current in currents:
        h = decay * v + gain * current
        spikes.append((h >= alpha * v_threshold).to(h.dtype))
        v = h - v_threshold * spikes[-1]
    r = represent(currents, tau, dt)
    ceiling = v_threshold if tau is None else v_threshold * tau / dt
    inside = (r >= 0) & (r <= ceiling) if tau is None else (r > 0) & (r < ceiling)
    return (torch.stack(spikes) * (v_threshold / dt)).to(x.dtype), v, inside, r > ceiling


def dsr_backward(
    grad_y: Tensor, inside: Tensor, above: Tensor, tau: float | None, dt: float
) -> tuple[Tensor, Tensor]:
    """Gradients of each step of `x`, `[...]`, and of `v_threshold`."""
    r = represent(grad_y.to(membrane_dtype(grad_y)), tau, dt)
    return r * inside / (tau or 1.0), dt * len(grad_y) * (r * above).sum()
