"""Depthwise convolutions of an affine map in a border: the native kernels against autograd."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.ops.depthwise import framed_depthwise, framed_depthwise_backward, reference
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn
from tests.ops.levels import DTYPES, LIBRARIES, SETTINGS, assert_same_bits, misaligned, natively

Case = tuple[int, int, int, int, int]

# Images, height, width, channels, kernel.
CASES: list[Case] = [
    (1, 1, 1, 1, 1),
    (1, 1, 1, 3, 5),
    (2, 5, 7, 3, 3),
    (2, 7, 6, 17, 3),
    (1, 8, 15, 64, 7),
    (2, 40, 60, 20, 3),
    (3, 4, 4, 33, 1),
    (0, 4, 4, 3, 3),
    (2, 0, 4, 3, 3),
]
BEST = next(iter(LIBRARIES), "baseline")


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Map, gain, offset, border and weight; gradient of the output."""
    n, h, w, c, k = case
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    vectors = [randn(c, seed=seed, dtype=wide) for seed in (1, 2, 3)]
    x, grad = (randn(n, h, w, c, seed=seed, dtype=dtype) for seed in (0, 5))
    return [x, *vectors, randn(c, 1, k, k, seed=4, dtype=wide)], grad


def both(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Output and gradients."""
    seen, grad = arguments(case, dtype)
    return framed_depthwise(*seen), *framed_depthwise_backward(grad, *seen)


def by_autograd(case: Case) -> tuple[Tensor, ...]:
    seen, grad = arguments(case)
    x, gain, offset, border, weight = (t.requires_grad_() for t in seen)
    padding, inside = case[4] // 2, gain * x + offset
    around = [padding] * 4
    mask = F.pad(torch.ones(case[1:3]).double(), around)[..., None]
    framed = F.pad(inside.movedim(-1, 1), around).movedim(1, -1) + (1 - mask) * border
    y = F.conv2d(framed.movedim(-1, 1), weight, groups=case[3]).movedim(1, -1)
    return y.detach(), *torch.autograd.grad(y, (inside, gain, offset, weight), grad)


@pytest.mark.parametrize("case", CASES[:-2], ids=str)
def test_the_ops_equal_autograd_in_float64(case: Case) -> None:
    expected = by_autograd(case)
    seen, grad = arguments(case)
    assert_same(
        (reference.framed_depthwise(*seen), *reference.framed_depthwise_backward(grad, *seen)),
        expected,
    )
    with natively(BEST):
        assert_same(both(case), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_levels_and_threads_change_no_bit(case: Case, dtype: torch.dtype) -> None:
    results = []
    for level, threads in SETTINGS:
        with natively(level, threads):
            results.append(both(case, dtype))
    for setting, result in zip(SETTINGS, results, strict=True):
        assert_same_bits(result, results[0], str(setting))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[:-2], ids=str)
def test_shorter_numbers_are_as_near_as_rounding_allows(case: Case, dtype: torch.dtype) -> None:
    seen, grad = arguments(case, dtype)
    exact = [t.double() for t in seen]
    size = [t.abs() for t in exact]
    expected = framed_depthwise(*exact), *framed_depthwise_backward(grad.double(), *exact)
    sizes = framed_depthwise(*size), *framed_depthwise_backward(grad.double().abs(), *size)
    additions = 2 + case[4] ** 2 + grad[..., 0].numel()
    with natively(BEST):
        actual = both(case, dtype)
    for result, right, most in zip(actual, expected, sizes, strict=True):
        rounding = torch.finfo(result.dtype).eps + additions * torch.finfo(torch.float32).eps
        assert ((result - right).abs() <= rounding * most).all()


def test_strides_of_the_arguments_do_not_matter() -> None:
    seen, grad = arguments(CASES[3])
    x, gain, offset, border, weight = seen
    turned = x.movedim(-1, 1).contiguous().movedim(1, -1)
    odd = [turned, *map(misaligned, (gain, offset, border)), weight.mT.contiguous().mT]
    with natively(BEST):
        assert_same_bits((framed_depthwise(*odd),), (framed_depthwise(*seen),), "forward")
        result = framed_depthwise_backward(misaligned(grad), *odd)
        assert_same_bits(result, framed_depthwise_backward(grad, *seen), "backward")


def test_without_positions_gradients_of_vectors_are_zero() -> None:
    y, inside, *rest = both((2, 0, 4, 3, 3))
    assert y.numel() == inside.numel() == 0
    assert all(grad.count_nonzero() == 0 for grad in rest)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    seen, grad = arguments(CASES[3], dtype)
    opcheck(framed_depthwise, tuple(seen))
    opcheck(framed_depthwise_backward, (grad, *seen))


def test_values_are_analog() -> None:
    assert OUTPUT_ALPHABETS[framed_depthwise.name()]() == (ANALOG,)
    assert OUTPUT_ALPHABETS[framed_depthwise_backward.name()]() == (ANALOG,) * 4


def test_bad_arguments_are_refused() -> None:
    (x, gain, offset, border, weight), grad = arguments(CASES[3])
    with pytest.raises(InputError, match=r"x has shape \[7, 6, 17\]"):
        framed_depthwise(x[0], gain, offset, border, weight)
    with pytest.raises(InputError, match="an odd k"):
        framed_depthwise(x, gain, offset, border, weight[..., :2, :2])
    with pytest.raises(InputError, match=r"border has shape \[16\]: expected \[17\]"):
        framed_depthwise(x, gain, offset, border[1:], weight)
    with pytest.raises(InputError, match=r"grad is torch\.float64 \[1, 7, 6, 17\]: expected"):
        framed_depthwise_backward(grad[:1], x, gain, offset, border, weight)
