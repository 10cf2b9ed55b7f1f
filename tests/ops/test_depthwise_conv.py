"""Depthwise convolutions of numbers and of spike bits: the native kernels against PyTorch's own."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, native
from spikeformers.ops.bits import pack
from spikeformers.ops.depthwise import (
    depthwise_conv,
    depthwise_weight_grad,
    reference,
    spike_depthwise_conv,
    spike_depthwise_weight_grad,
)
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn, random_spikes
from tests.ops.levels import DTYPES, LIBRARIES, SETTINGS, assert_same_bits, misaligned, natively

Case = tuple[int, int, int, int, int, int]

# Images, height, width, channels, kernel, padding.
CASES: list[Case] = [
    (1, 1, 1, 1, 1, 0),
    (2, 5, 7, 3, 3, 1),
    (3, 9, 6, 17, 3, 0),
    (1, 8, 11, 64, 7, 3),
    (2, 4, 15, 33, 2, 1),
    (1, 2, 2, 4, 2, 4),
    (1, 12, 14, 130, 11, 5),
    (2, 3, 5, 70, 5, 2),
    (1, 160, 170, 80, 3, 1),  # the outputs go past the caches
    (0, 4, 4, 3, 3, 1),
]
BEST = next(iter(LIBRARIES), "baseline")


def tensors(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, int]:
    """Arguments of `depthwise_conv`."""
    n, h, w, c, k, padding = case
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    return randn(n, h, w, c, dtype=dtype), randn(c, 1, k, k, seed=1, dtype=wide), padding


def spikes(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Spikes as numbers and as bits."""
    x = random_spikes(*case[:4], rate=0.3).to(dtype)
    return x, pack(x)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_level_equals_pytorch_in_float64(case: Case) -> None:
    x, weight, padding = tensors(case)
    expected = F.conv2d(x.movedim(-1, 1), weight, padding=padding, groups=case[3]).movedim(1, -1)
    assert_same(reference.depthwise_conv(x, weight, padding), expected)
    for level in LIBRARIES:
        with natively(level):
            assert_same(depthwise_conv(x, weight, padding), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_levels_and_threads_change_no_bit(case: Case, dtype: torch.dtype) -> None:
    results = []
    for level, threads in SETTINGS:
        with natively(level, threads):
            results.append(depthwise_conv(*tensors(case, dtype)))
    for setting, result in zip(SETTINGS, results, strict=True):
        assert_same_bits((result,), (results[0],), str(setting))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_spikes_are_seen_as_numbers(case: Case, dtype: torch.dtype) -> None:
    _, weight, padding = tensors(case, dtype)
    kernel = (case[4], 1, padding)
    x, bits = spikes(case, dtype)
    for setting in SETTINGS:
        with natively(*setting):
            expected = depthwise_conv(x, weight, padding)
            grads = expected, depthwise_weight_grad(x, expected, *kernel)
            found = spike_depthwise_conv(bits, weight, padding, dtype)
            results = found, spike_depthwise_weight_grad(bits, found, *kernel)
        assert_same_bits(results, grads, str(setting))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [2, 3])
def test_the_gradient_sees_spikes_at_any_stride(stride: int, dtype: torch.dtype) -> None:
    x, bits = spikes((2, 9, 7, 70, 3, 1), dtype)
    grad = randn(2, *((length - 1) // stride + 1 for length in (9, 7)), 70, dtype=dtype)
    for level in LIBRARIES:
        with natively(level):
            found = spike_depthwise_weight_grad(bits, grad, 3, stride, 1)
            assert_same_bits((found,), (depthwise_weight_grad(x, grad, 3, stride, 1),), level)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shorter_numbers_are_as_near_as_rounding_allows(case: Case, dtype: torch.dtype) -> None:
    x, weight, padding = tensors(case, dtype)
    exact = reference.depthwise_conv(x.double(), weight.double(), padding)
    most = reference.depthwise_conv(x.double().abs(), weight.double().abs(), padding)
    with natively(BEST):
        found = depthwise_conv(x, weight, padding)
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps + case[4] ** 2 * torch.finfo(torch.float32).eps
    assert ((found.double() - exact).abs() <= rounding * most).all()


def test_strides_and_alignment_of_the_arguments_do_not_matter() -> None:
    x, weight, padding = tensors(CASES[4])
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    with natively(BEST):
        expected = depthwise_conv(x, weight, padding)
        for arguments in ((turned, weight.mT.contiguous().mT), (misaligned(x), misaligned(weight))):
            assert_same_bits((depthwise_conv(*arguments, padding),), (expected,), "strides")
        _, bits = spikes(CASES[4], x.dtype)
        turned = bits.transpose(1, 2).contiguous().transpose(1, 2)
        expected = spike_depthwise_conv(bits, weight, padding, x.dtype)
        found = spike_depthwise_conv(turned, weight, padding, x.dtype)
        assert_same_bits((found,), (expected,), "spikes")


@pytest.mark.compile  # traces with sizes that are symbols
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight, padding = tensors(CASES[2], dtype)
    _, bits = spikes(CASES[2], dtype)
    opcheck(depthwise_conv, (x, weight, padding))
    opcheck(spike_depthwise_conv, (bits, weight, padding, dtype))
    grad = depthwise_conv(x, weight, padding)
    opcheck(spike_depthwise_weight_grad, (bits, grad, 3, 1, padding))


def test_without_a_library_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", None)
    _, weight, padding = tensors(CASES[1])
    x, bits = spikes(CASES[1], weight.dtype)
    y = depthwise_conv(x, weight, padding)
    assert_same(spike_depthwise_conv(bits, weight, padding, x.dtype), y)
    assert_same(spike_depthwise_weight_grad(bits, y, 3, 1, 1), depthwise_weight_grad(x, y, 3, 1, 1))


def test_values_are_analog() -> None:
    for op in (depthwise_conv, spike_depthwise_conv, spike_depthwise_weight_grad):
        assert OUTPUT_ALPHABETS[op.name()]() == (ANALOG,)


def test_bad_arguments_are_refused() -> None:
    x, weight, _ = tensors(CASES[2])
    _, bits = spikes(CASES[2], x.dtype)
    with pytest.raises(InputError, match=r"x has shape \[9, 6, 17\]"):
        depthwise_conv(x[0], weight, 1)
    with pytest.raises(InputError, match="padding=-1"):
        depthwise_conv(x, weight, -1)
    with pytest.raises(InputError, match=r"weight \[17, 1, 3, 2\]"):
        depthwise_conv(x, weight[..., :2], 1)
    with pytest.raises(InputError, match="that kernels"):
        depthwise_conv(x[:, :2], weight, 0)
    with pytest.raises(InputError, match="weight is for 16 channels: expected 17"):
        depthwise_conv(x, weight[1:], 1)
    with pytest.raises(InputError, match=r"int64 \[N, H, W, 1\] for 17 channels"):
        spike_depthwise_conv(bits.int(), weight, 1, x.dtype)
    with pytest.raises(InputError, match=r"weight \[17, 3, 3\]"):
        spike_depthwise_conv(bits, weight[:, 0], 1, x.dtype)
    with pytest.raises(InputError, match=r"grad has shape \[3, 9, 6, 17\]: expected \[3, 7, 4\]"):
        spike_depthwise_weight_grad(bits, x, 3, 1, 0)
    with pytest.raises(InputError, match="for 80 channels"):
        spike_depthwise_weight_grad(bits, x.new_empty(3, 9, 6, 80), 3, 1, 1)
