"""Surrogate derivatives equal the published formulas."""

import math
from collections.abc import Callable

import pytest
import torch

from spikeformers.ops import SURROGATES


def sigmoid(u: float, a: float) -> float:
    s = 1 / (1 + math.exp(-a * u))
    return a * s * (1 - s)


def atan(u: float, a: float) -> float:
    return a / 2 / (1 + (math.pi / 2 * a * u) ** 2)


def rectangle(u: float, a: float) -> float:
    return a if abs(u) < 1 / (2 * a) else 0.0


def tanh(u: float, a: float) -> float:
    return a * (1 - math.tanh(a * u) ** 2) / (2 * math.tanh(a)) if -1 <= u <= 1 else 0.0


FORMULAS: dict[str, Callable[[float, float], float]] = {
    "sigmoid": sigmoid,
    "atan": atan,
    "rectangle": rectangle,
    "tanh": tanh,
    "straight_through": lambda _u, _a: 1.0,
}
# What the published code computes, without a free sharpness.
CUSTOMARY: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda u: sigmoid(u, 4.0),
    "atan": lambda u: 1 / (1 + (math.pi * u) ** 2),
    "rectangle": lambda u: float(abs(u) < 0.5),
    "tanh": lambda u: tanh(u, 2.5),
    "straight_through": lambda _u: 1.0,
}
POINTS = torch.cat(
    [
        torch.linspace(-2, 2, 81, dtype=torch.float64),
        torch.tensor([0.5, 1.0, 1 + 1e-12, 0.25, 0.5 - 1e-12], dtype=torch.float64),
    ]
)


def test_every_surrogate_has_a_formula_here() -> None:
    assert set(SURROGATES) == set(FORMULAS) == set(CUSTOMARY)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, alpha: float) -> None:
    expected = torch.tensor(
        [FORMULAS[name](u, alpha) for u in POINTS.tolist()], dtype=torch.float64
    )
    actual = SURROGATES[name].derivative(POINTS, alpha)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("name", CUSTOMARY)
def test_customary_sharpness_is_that_of_the_published_code(name: str) -> None:
    surrogate = SURROGATES[name]
    expected = torch.tensor([CUSTOMARY[name](u) for u in POINTS.tolist()], dtype=torch.float64)
    actual = surrogate.derivative(POINTS, surrogate.alpha)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype_and_stays_finite_far_away(name: str, dtype: torch.dtype) -> None:
    slope = SURROGATES[name].derivative(torch.tensor([-200.0, 0.0, 200.0], dtype=dtype), 4.0)
    assert slope.dtype == dtype
    assert slope.isfinite().all()
    assert (slope >= 0).all()
