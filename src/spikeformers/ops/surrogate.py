"""Surrogate derivatives: what stands in for the derivative of the step function.

A neuron fires when `u = h - v_threshold` reaches zero. The step has derivative zero almost
everywhere, so training replaces it by one of these functions of `u`. `alpha` is the sharpness; each
function has the default of the code base it comes from.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def sigmoid(u: Tensor, alpha: float) -> Tensor:
    """Derivative of `sigmoid(alpha u)`: `alpha s (1 - s)`. SpikingJelly's default, alpha 4."""
    s = torch.sigmoid(alpha * u)
    return alpha * torch.addcmul(s, s, s, value=-1)


def atan(u: Tensor, alpha: float) -> Tensor:
    """Derivative of `arctan(pi/2 alpha u) / pi + 1/2`; alpha 2 (Fang et al., ICCV 2021)."""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u) ** 2)


def rectangle(u: Tensor, alpha: float) -> Tensor:
    """`alpha` where `|u| < 1 / (2 alpha)`, else 0; alpha 1 (Wu et al., 2018; MS-ResNet)."""
    return alpha * (u.abs() < 0.5 / alpha).to(u.dtype)


def tanh(u: Tensor, alpha: float) -> Tensor:
    """`alpha (1 - tanh^2(alpha u)) / (2 tanh alpha)` where `|u| <= 1`, else 0; STMixer's, 2.5."""
    inside = (u.abs() <= 1).to(u.dtype)
    return inside * alpha * (1 - torch.tanh(alpha * u) ** 2) / (2 * math.tanh(alpha))


def straight_through(u: Tensor, alpha: float) -> Tensor:  # noqa: ARG001 - has no sharpness
    """1 everywhere: the gradient passes as if there were no step."""
    return torch.ones_like(u)


class Surrogate(NamedTuple):
    """A surrogate derivative and its customary sharpness."""

    derivative: Callable[[Tensor, float], Tensor]
    alpha: float


SURROGATES: dict[str, Surrogate] = {
    "atan": Surrogate(atan, 2.0),
    "rectangle": Surrogate(rectangle, 1.0),
    "sigmoid": Surrogate(sigmoid, 4.0),
    "straight_through": Surrogate(straight_through, 1.0),
    "tanh": Surrogate(tanh, 2.5),
}


def fires(u: Tensor, strict: bool) -> Tensor:
    """Spikes (0 or 1, in the dtype of `u`) of `u = h - v_threshold`: at zero unless `strict`."""
    return (u > 0 if strict else u >= 0).to(u.dtype)


class Fire(torch.autograd.Function):
    """The step function with a surrogate derivative, for plain autograd."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: str, alpha: float, strict: bool) -> Tensor:
        """Spikes of `u = h - v_threshold`."""
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return fires(u, strict)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Surrogate derivative times the incoming gradient."""
        (u,) = ctx.saved_tensors
        return grads[0] * SURROGATES[ctx.surrogate].derivative(u, ctx.alpha), None, None, None
