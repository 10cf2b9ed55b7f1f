# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""One step of the LIF neuron in Triton: what every kernel with a neuron in it is made of.

Formulas and order of additions are those of `reference.py`.
"""

import math
from dataclasses import dataclass

import triton
import triton.language as tl

HALF_PI = tl.constexpr(math.pi / 2)


@dataclass(frozen=True)
class Dynamics:
    """What the compiler knows of a neuron; the meaning of each option stands in `op.py`."""

    v_reset: float | None
    decay_input: bool
    strict: bool = False
    detach_reset: bool = True
    surrogate: str = "straight_through"
    alpha: float = 1.0

    @property
    def rest(self) -> float:
        """Potential of a neuron that nothing has reached."""
        return 0.0 if self.v_reset is None else self.v_reset


@triton.jit
def charge(v, current, decay, neuron: tl.constexpr):
    """Membrane before the reset."""
    if neuron.decay_input:
        h = v + (1 - decay) * (current - (v - neuron.rest))
    else:
        h = neuron.rest + decay * (v - neuron.rest) + current
    return h


@triton.jit
def fires(h, v_threshold, neuron: tl.constexpr):
    """Spikes, 0 or 1 in the dtype of the membrane."""
    fired = h > v_threshold if neuron.strict else h >= v_threshold
    return fired.to(h.dtype)


@triton.jit
def reset(h, s, v_threshold, neuron: tl.constexpr):
    """Membrane after the step in which `s` was emitted."""
    return h - v_threshold * s if neuron.v_reset is None else h * (1 - s) + neuron.v_reset * s


@triton.jit
def reset_derivatives(h, s, slope, v_threshold, neuron: tl.constexpr):
    """Derivatives of the membrane after the reset: by the one before it, and by the threshold."""
    if neuron.detach_reset:
        slope = tl.zeros_like(slope)
    if neuron.v_reset is None:
        by_h, by_threshold = 1 - v_threshold * slope, v_threshold * slope - s
    else:
        by_h, by_threshold = 1 - s + (neuron.v_reset - h) * slope, (h - neuron.v_reset) * slope
    return by_h, by_threshold


@triton.jit
def surrogate_derivative(u, neuron: tl.constexpr):
    """What stands in for the derivative of the step, see `ops/surrogate.py`."""
    alpha: tl.constexpr = neuron.alpha
    if neuron.surrogate == "sigmoid":
        slope = alpha * bell(alpha * u)
    elif neuron.surrogate == "atan":
        slope = alpha / 2 / (1 + (HALF_PI * alpha * u) * (HALF_PI * alpha * u))
    elif neuron.surrogate == "rectangle":
        slope = tl.where(tl.abs(u) < 0.5 / alpha, alpha, tl.zeros_like(u))
    elif neuron.surrogate == "tanh":  # 1 - tanh(z)^2 = 4 bell(2 z)
        peak: tl.constexpr = 2 * alpha / tanh_of(alpha)
        slope = tl.where(tl.abs(u) <= 1, peak * bell(2 * alpha * u), 0)
    else:
        tl.static_assert(neuron.surrogate == "straight_through")
        slope = tl.zeros_like(u) + 1
    return slope


@triton.jit
def bell(z):
    """Derivative of the logistic function; it is even, so that no power need overflow."""
    e = tl.exp(-tl.abs(z))
    return e / ((1 + e) * (1 + e))


@triton.constexpr_function
def tanh_of(alpha):
    """Hyperbolic tangent of a number that the compiler knows."""
    return math.tanh(alpha)


def block_of(timesteps: int) -> int:
    """Neurons of a program that keeps so many steps in registers: 8 per thread up to 4 steps."""
    return max(256, min(1024, 4096 // triton.next_power_of_2(timesteps)))


def backwards(timesteps: int) -> list[tuple[int, int]]:
    """Cut time into pieces that fit into registers: first step and length, the last piece first."""
    longest = 16
    return [
        (first, min(longest, timesteps - first)) for first in reversed(range(0, timesteps, longest))
    ]
