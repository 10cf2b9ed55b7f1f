"""Weights of 8 bits: each output channel counts in steps of its own, a power of two.

A power of two costs up to one bit of resolution, and buys that a sum of weights turns into a
current by a shift.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.layers import Foldable, Synapse

__all__ = ["FRACTION_BITS", "round_weight", "simulate_rounding"]

FRACTION_BITS = 16
"""Position of the binary point of currents: no weight counts in finer steps."""

_LARGEST = 127


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers `w` and exponents `e` with `weight[o] ~ w[o] 2**-e[o]`.

    Args:
        weight: Real numbers `[O, ...]`.

    Returns:
        Numbers from -127 to 127 in the dtype of `weight`, and int32 `[O]`.
    """
    peak = weight.flatten(1).abs().amax(1) / _LARGEST
    # peak = m 2**exponent with m in [0.5, 1), so that 2**exponent is the first power above it.
    exponent = (-torch.frexp(peak).exponent).clamp(max=FRACTION_BITS)
    steps = torch.ldexp(weight, exponent.view(-1, *[1] * (weight.ndim - 1))).round()
    return steps.clamp(-_LARGEST, _LARGEST), exponent


def simulate_rounding(model: nn.Module) -> None:
    """Let a model compute with rounded weights from now on, and learn what suits them.

    Behind every synapse stands a second one whose weights are the rounding errors of the folded
    weights, constants to autograd: outputs are those of the rounded weights, gradients reach the
    real ones as if nothing were rounded (the straight-through estimator).

    Args:
        model: Changed in place; parameters and their names stay as they are.

    Reference:
        Jacob et al., CVPR 2018, arXiv:1712.05877; Bengio et al., arXiv:1308.3432.
    """
    if isinstance(model, Synapse | nn.Conv2d | nn.Linear):
        model.register_forward_hook(_with_rounding_errors)
        return
    for child in model.children():
        simulate_rounding(child)


def _with_rounding_errors(synapse: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
    folded = synapse.fold() if isinstance(synapse, Foldable) else _without_hooks(synapse)
    weight = folded.get_parameter("weight").detach()
    steps, exponent = round_weight(weight)
    errors = torch.ldexp(steps, -exponent.view(-1, *[1] * (weight.ndim - 1))) - weight
    parts = {"weight": errors}
    if folded.bias is not None:
        parts["bias"] = torch.zeros_like(folded.get_parameter("bias"))
    return y + torch.func.functional_call(folded, parts, inputs)


def _without_hooks(module: nn.Module) -> nn.Module:
    """Return a module of the same tensors that can run inside its own hook."""
    twin = copy.copy(module)
    twin._forward_hooks = OrderedDict()
    return twin
