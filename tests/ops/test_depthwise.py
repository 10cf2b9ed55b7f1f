"""The weight gradient of depthwise convolutions: the native kernel against PyTorch's own."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, native
from spikeformers.ops.depthwise import depthwise_weight_grad
from spikeformers.ops.native import DTYPES, LEVELS, Kernel, Library
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn

Case = tuple[int, int, int, int, int, int, int]

# Images, height, width, channels, kernel, stride, padding.
CASES: list[Case] = [
    (1, 1, 1, 1, 1, 1, 0),
    (2, 5, 7, 3, 3, 1, 1),
    (2, 9, 6, 17, 3, 2, 1),
    (1, 8, 11, 64, 7, 1, 3),
    (3, 6, 6, 33, 5, 3, 0),
    (1, 2, 2, 4, 2, 1, 4),
    (1, 12, 14, 5, 11, 1, 5),
    (2, 40, 60, 20, 3, 1, 1),
    (0, 4, 4, 3, 3, 1, 1),
]
AVAILABLE = [level for level in LEVELS if native.load(level)[0] is not None]


def maps(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Input and gradient of the output."""
    n, h, w, c, k, s, p = case
    size = [(length + 2 * p - k) // s + 1 for length in (h, w)]
    return randn(n, h, w, c, dtype=dtype), randn(n, *size, c, seed=1, dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_op_equals_autograd_in_float64(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    call = Kernel.__call__

    def spy(self: Kernel, *args: object) -> None:
        call(self, *args)
        names.append(self.name)

    monkeypatch.setattr(Kernel, "__call__", spy)
    *_, c, k, s, p = case
    x, grad = maps(case, torch.float64)
    weight = randn(c, 1, k, k).requires_grad_()
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=s, padding=p, groups=c)
    (expected,) = torch.autograd.grad(y.permute(0, 2, 3, 1), weight, grad)
    assert_same(depthwise_weight_grad(x, grad, k, s, p), expected)
    assert names == ["depthwise_weight_grad"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shorter_numbers_are_as_near_as_their_additions_allow(
    case: Case, dtype: torch.dtype
) -> None:
    *_, k, s, p = case
    x, grad = maps(case, dtype)
    found = depthwise_weight_grad(x, grad, k, s, p)
    assert found.dtype == torch.float32
    exact = depthwise_weight_grad(x.double(), grad.double(), k, s, p)
    size = depthwise_weight_grad(x.double().abs(), grad.double().abs(), k, s, p)
    additions = 1 + grad[..., 0].numel()
    assert ((found - exact).abs() <= torch.finfo(torch.float32).eps * additions * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_levels_and_threads_change_no_bit(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads_before = torch.get_num_threads()
    results = []
    for level, threads in itertools.product(AVAILABLE, (1, 3)):
        monkeypatch.setattr(native, "LIBRARY", Library(level))
        torch.set_num_threads(threads)
        results.append(depthwise_weight_grad(*maps(case, dtype), *case[4:]))
    torch.set_num_threads(threads_before)
    assert len(results) >= 4
    assert all(torch.equal(result, results[0]) for result in results)


def test_strides_of_the_arguments_do_not_matter() -> None:
    x, grad = maps((2, 5, 7, 19, 3, 1, 1), torch.float64)
    expected = depthwise_weight_grad(x, grad, 3, 1, 1)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    odd = torch.cat([grad.new_zeros(1), grad.flatten()])[1:].view_as(grad)
    assert torch.equal(depthwise_weight_grad(turned, odd, 3, 1, 1), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    opcheck(depthwise_weight_grad, (*maps(CASES[2], dtype), 3, 2, 1))


def test_gradients_are_analog() -> None:
    assert OUTPUT_ALPHABETS[depthwise_weight_grad.name()]() == (ANALOG,)


def test_bad_arguments_are_refused() -> None:
    x, grad = maps(CASES[1], torch.float64)
    with pytest.raises(InputError, match=r"grad is torch\.float64 \[2, 5, 7, 3\]: expected"):
        depthwise_weight_grad(x, grad, 5, 1, 1)
    with pytest.raises(InputError, match=r"grad is torch\.float32"):
        depthwise_weight_grad(x, grad.float(), 3, 1, 1)
    with pytest.raises(InputError, match=r"x has shape \[5, 7, 3\]"):
        depthwise_weight_grad(x[0], grad, 3, 1, 1)
    with pytest.raises(InputError, match="stride=0"):
        depthwise_weight_grad(x, grad, 3, 0, 1)


def test_without_outputs_the_gradient_is_zero() -> None:
    x = randn(2, 4, 2, 3)
    assert_same(
        depthwise_weight_grad(x, x.new_empty(2, 2, 0, 3), 3, 1, 0), torch.zeros(3, 1, 3, 3).double()
    )
