"""Products of binary q, k and v: the native kernels against the formula and its autograd."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.ops.bits import pack
from spikeformers.ops.qkv_product import qkv_product, qkv_product_backward, reference
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn, random_spikes
from tests.ops.levels import DTYPES, LIBRARIES, SETTINGS, assert_same_bits, misaligned, natively

Case = tuple[int, int, int, int, int]

# Images, tokens, channels of q and k, channels of v, heads.
CASES: list[Case] = [
    (1, 1, 1, 1, 1),
    (2, 7, 6, 9, 3),
    (3, 13, 130, 260, 2),
    (1, 20, 135, 135, 3),
    (2, 49, 64, 64, 8),
    (0, 4, 6, 6, 2),
    (2, 0, 6, 6, 2),
]
SCALE = 0.3
BEST = next(iter(LIBRARIES), "baseline")


def spikes(case: Case, rate: float) -> list[Tensor]:
    n, tokens, width, v_width, _ = case
    sizes = enumerate((width, width, v_width))
    return [random_spikes(n, tokens, size, seed=seed, rate=rate) for seed, size in sizes]


def both(case: Case, dtype: torch.dtype = torch.float64, rate: float = 0.3) -> tuple[Tensor, ...]:
    """Product and gradients."""
    *_, width, v_width, heads = case
    qkv = [pack(x) for x in spikes(case, rate)]
    y = qkv_product(*qkv, width, v_width, heads, SCALE, dtype)
    grad = randn(*y.shape, seed=4, dtype=dtype)
    return y, *qkv_product_backward(grad, *qkv, width, heads, SCALE)


def by_autograd(case: Case, rate: float) -> tuple[Tensor, ...]:
    qkv = [x.requires_grad_() for x in spikes(case, rate)]
    q, k, v = (x.unflatten(2, (case[4], -1)).transpose(1, 2) for x in qkv)
    y = (SCALE * q @ k.mT @ v).transpose(1, 2).flatten(2)
    return y.detach(), *torch.autograd.grad(y, qkv, randn(*y.shape, seed=4))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_ops_equal_autograd_in_float64(case: Case, rate: float) -> None:
    expected = by_autograd(case, rate)
    with natively(BEST):
        assert_same(both(case, rate=rate), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_equals_autograd(case: Case) -> None:
    *_, width, v_width, heads = case
    q, k, v = (pack(x) for x in spikes(case, 0.3))
    y = reference.qkv_product(q, k, v, width, v_width, heads, SCALE, torch.float64)
    grads = reference.qkv_product_backward(randn(*y.shape, seed=4), q, k, v, width, heads, SCALE)
    assert_same((y, *grads), by_autograd(case, 0.3))


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
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_shorter_numbers_are_rounded(case: Case, dtype: torch.dtype) -> None:
    with natively(BEST):
        results, exact = both(case, dtype), both(case)
    for result, right in zip(results, exact, strict=True):
        assert result.dtype == dtype
        # The gradient that comes in is rounded, too.
        tolerance = 4 * torch.finfo(dtype).eps * right.abs().max().clamp(min=1)
        assert ((result - right).abs() <= tolerance).all()


def test_strides_of_the_arguments_do_not_matter() -> None:
    n, tokens, width, v_width, heads = CASES[2]
    qkv = [pack(x) for x in spikes(CASES[2], 0.3)]
    odd = [x.mT.contiguous().mT for x in qkv]
    grad = randn(n, tokens, v_width)
    with natively(BEST):
        result = qkv_product_backward(misaligned(grad), *odd, width, heads, SCALE)
        assert_same_bits(result, qkv_product_backward(grad, *qkv, width, heads, SCALE), "backward")
        sizes = (width, v_width, heads, SCALE, grad.dtype)
        assert_same_bits((qkv_product(*odd, *sizes),), (qkv_product(*qkv, *sizes),), "forward")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    n, tokens, width, v_width, heads = CASES[1]
    qkv = [pack(x) for x in spikes(CASES[1], 0.3)]
    opcheck(qkv_product, (*qkv, width, v_width, heads, SCALE, dtype))
    grad = randn(n, tokens, v_width, dtype=dtype)
    opcheck(qkv_product_backward, (grad, *qkv, width, heads, SCALE))


def test_values_are_analog() -> None:
    assert OUTPUT_ALPHABETS[qkv_product.name()]() == (ANALOG,)
    assert OUTPUT_ALPHABETS[qkv_product_backward.name()]() == (ANALOG,) * 3


def test_bad_arguments_are_refused() -> None:
    q, k, v = (pack(x) for x in spikes(CASES[2], 0.3))
    with pytest.raises(InputError, match=r"v is torch\.int64 \[3, 13, 5\]: expected"):
        qkv_product(q, k, v, 130, 130, 2, SCALE, torch.float32)
    with pytest.raises(InputError, match="heads=4: expected a divisor of the 130 channels of q"):
        qkv_product(q, k, v, 130, 260, 4, SCALE, torch.float32)
    with pytest.raises(InputError, match=r"k is torch\.float32"):
        qkv_product(q, k.float(), v, 130, 260, 2, SCALE, torch.float32)
    with pytest.raises(InputError, match=r"grad has shape \[3, 12, 260\]"):
        qkv_product_backward(randn(3, 12, 260), q, k, v, 130, 2, SCALE)
