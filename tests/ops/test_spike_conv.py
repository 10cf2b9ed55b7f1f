"""The convolution of spike bits and its weight gradient: native kernels against PyTorch's own."""

import itertools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, native
from spikeformers.ops.bits import pack
from spikeformers.ops.native import DTYPES, LEVELS, Kernel, Library
from spikeformers.ops.spike_conv import native as kernels
from spikeformers.ops.spike_conv import reference, spike_conv, spike_conv_weight_grad
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn, random_spikes


class Case(NamedTuple):
    """A convolution: images, height, width, channels, outputs, kernel, stride, padding."""

    n: int
    h: int
    w: int
    i: int
    o: int
    k: int
    s: int
    p: int

    def spikes(self, rate: float) -> Tensor:
        return random_spikes(self.n, self.h, self.w, self.i, rate=rate)

    def weight(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return randn(self.o, self.i, self.k, self.k, dtype=dtype)

    def grad(self, dtype: torch.dtype = torch.float64) -> Tensor:
        size = [(length + 2 * self.p - self.k) // self.s + 1 for length in (self.h, self.w)]
        return randn(self.n, *size, self.o, seed=1, dtype=dtype)


CASES = [
    Case(1, 1, 1, 1, 1, 1, 1, 0),
    Case(2, 5, 7, 3, 5, 3, 1, 1),
    Case(3, 4, 9, 63, 17, 1, 1, 0),
    Case(1, 6, 6, 64, 64, 3, 1, 1),
    Case(2, 9, 4, 65, 33, 3, 2, 1),
    Case(1, 8, 11, 130, 66, 2, 1, 0),
    Case(2, 7, 7, 20, 100, 5, 1, 2),
    Case(1, 13, 10, 10, 16, 7, 2, 3),
    Case(2, 10, 10, 7, 129, 3, 3, 0),
    Case(2, 9, 9, 200, 8, 1, 2, 0),
    Case(1, 2, 2, 4, 4, 5, 1, 3),
    Case(1, 3, 3, 5, 6, 2, 1, 4),
    Case(2, 6, 5, 9, 3, 2, 5, 1),
    Case(1, 3, 260, 70, 40, 3, 1, 1),
    Case(9, 7, 6, 330, 20, 1, 1, 0),
    Case(5, 14, 14, 40, 24, 3, 1, 1),
    Case(0, 4, 4, 3, 2, 3, 1, 1),
    Case(1, 4, 4, 1025, 3, 1, 1, 0),
    Case(2, 40, 41, 2, 70, 3, 1, 1),  # few weights and many positions, which are cut into parts
]
RATES = [0.0, 0.15, 1.0]
AVAILABLE = [level for level in LEVELS if native.load(level)[0] is not None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of this op's native kernels, as they are called."""
    names: list[str] = []
    call = Kernel.__call__

    def spy(self: Kernel, *args: object) -> None:
        call(self, *args)
        if self.name.startswith("spike_conv"):
            names.append(self.name)

    monkeypatch.setattr(Kernel, "__call__", spy)
    return names


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def both(case: Case, rate: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Currents and weight gradient of a case, by the ops."""
    bits = pack(case.spikes(rate))
    y = spike_conv(bits, case.weight(dtype), case.s, case.p, dtype)
    return y, spike_conv_weight_grad(bits, case.grad(dtype), case.i, case.k, case.s, case.p)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_ops_equal_pytorch_in_float64(case: Case, rate: float, calls: list[str]) -> None:
    y, grad = both(case, rate, torch.float64)
    spikes = case.spikes(rate).permute(0, 3, 1, 2)
    weight = case.weight().requires_grad_()
    expected = F.conv2d(spikes, weight, stride=case.s, padding=case.p).permute(0, 2, 3, 1)
    assert_same(y, expected.detach())
    assert_same(grad, torch.autograd.grad(expected, weight, case.grad())[0])
    assert calls == ["spike_conv", "spike_conv_weight_grad"]
    assert y.is_contiguous() and grad.is_contiguous()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_as_near_as_its_additions_allow(case: Case) -> None:
    y, grad = both(case, 0.3, torch.float32)
    bits, eps = pack(case.spikes(0.3)), torch.finfo(torch.float32).eps
    options = (case.s, case.p)
    exact = spike_conv(bits, case.weight(torch.float32).double(), *options, torch.float64)
    size = spike_conv(bits, case.weight().abs(), *options, torch.float64)
    assert ((y - exact).abs() <= eps * case.i * case.k**2 * size).all()
    incoming = case.grad(torch.float32).double()
    exact, size = (
        spike_conv_weight_grad(bits, value, case.i, case.k, *options)
        for value in (incoming, incoming.abs())
    )
    assert ((grad - exact).abs() <= eps * max(1, incoming[..., 0].numel()) * size).all()


@pytest.mark.parametrize("case", CASES[:9], ids=str)
def test_bfloat16_is_float32_rounded_once(case: Case, calls: list[str]) -> None:
    y, grad = both(case, 0.3, torch.bfloat16)
    assert y.dtype == torch.bfloat16 and grad.dtype == torch.float32
    assert calls == ["spike_conv", "spike_conv_weight_grad"]
    bits, weight = pack(case.spikes(0.3)), case.weight(torch.bfloat16).float()
    wide = spike_conv(bits, weight, case.s, case.p, torch.float32)
    assert torch.equal(y, wide.bfloat16())
    incoming = case.grad(torch.bfloat16).float()
    expected = spike_conv_weight_grad(bits, incoming, case.i, case.k, case.s, case.p)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_levels_and_threads_change_no_bit(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, three_threads: None
) -> None:
    del three_threads
    results = []
    for level in AVAILABLE:
        monkeypatch.setattr(native, "LIBRARY", Library(level))
        for threads in (3, 1):
            torch.set_num_threads(threads)
            results.append(both(case, 0.2, dtype))
    assert len(results) == 2 * len(AVAILABLE) >= 4
    for first, other in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_tile_may_begin_and_end_inside_images() -> None:
    case = Case(7, 13, 13, 70, 70, 3, 1, 1)  # a thread has 4 tiles or more
    y, grad = both(case, 0.1, torch.float64)
    bits = pack(case.spikes(0.1))
    assert_same(y, reference.spike_conv(bits, case.weight(), 1, 1, torch.float64))
    assert_same(grad, reference.spike_conv_weight_grad(bits, case.grad(), case.i, 3, 1, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [96, 104])
def test_currents_may_be_larger_than_the_caches(
    outputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(2, 150, 150, 5, outputs, 1, 1, 0)  # 96 fill whole lines of cache, 104 do not
    bits, weight = pack(case.spikes(0.3)), case.weight().round().to(dtype)  # sums are exact
    expected = reference.spike_conv(bits, weight, 1, 0, torch.float64).to(dtype)
    for level in AVAILABLE:
        monkeypatch.setattr(native, "LIBRARY", Library(level))
        assert torch.equal(spike_conv(bits, weight, 1, 0, dtype), expected)


def test_strides_of_the_arguments_do_not_matter() -> None:
    case = Case(2, 6, 5, 130, 33, 3, 1, 1)
    bits, weight, grad = pack(case.spikes(0.2)), case.weight(), case.grad()
    y = spike_conv(bits, weight, 1, 1, torch.float64)
    views = [
        torch.stack([bits, bits], -1)[..., 1],
        bits.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([bits.new_zeros(1), bits.flatten()])[1:].view_as(bits),
    ]
    for view in views:
        assert torch.equal(spike_conv(view, weight, 1, 1, torch.float64), y)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(spike_conv(bits, last, 1, 1, torch.float64), y)
    odd = torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view_as(weight)
    assert torch.equal(spike_conv(bits, odd, 1, 1, torch.float64), y)
    expanded = grad[:1, :1].expand_as(grad)
    assert torch.equal(
        spike_conv_weight_grad(bits, expanded, case.i, 3, 1, 1),
        spike_conv_weight_grad(views[0], expanded.contiguous(), case.i, 3, 1, 1),
    )


@pytest.mark.compile
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(dtype: torch.dtype) -> None:
    case = Case(2, 5, 6, 70, 9, 3, 2, 1)
    bits, weight = pack(case.spikes(0.2)), case.weight(dtype).requires_grad_()
    opcheck(spike_conv, (bits, weight, case.s, case.p, dtype))
    opcheck(spike_conv_weight_grad, (bits, case.grad(dtype), case.i, case.k, case.s, case.p))


def test_the_weights_learn_through_the_op() -> None:
    case = Case(2, 5, 6, 70, 9, 3, 2, 1)
    bits, weight = pack(case.spikes(0.2)), case.weight(torch.float32).requires_grad_()
    y = spike_conv(bits, weight, case.s, case.p, torch.bfloat16)
    (grad,) = torch.autograd.grad(y, weight, case.grad(torch.bfloat16))
    assert grad.dtype == torch.float32
    expected = spike_conv_weight_grad(bits, case.grad(torch.bfloat16), case.i, 3, case.s, case.p)
    assert torch.equal(grad, expected)


def test_currents_are_analog() -> None:
    for op in (spike_conv, spike_conv_weight_grad):
        assert OUTPUT_ALPHABETS[op.name()]() == (ANALOG,)


def test_what_the_kernels_cannot_do_is_done_by_pytorch_and_logged_once(
    caplog: pytest.LogCaptureFixture, calls: list[str]
) -> None:
    case = Case(1, 4, 4, 5, 3, 3, 1, 1)
    native._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "spikeformers"):
        for _ in range(2):
            y, _ = both(case, 0.5, torch.float16)
    assert not calls
    (record,) = caplog.records
    assert "torch.float16 on cpu" in record.getMessage()
    bits, weight = pack(case.spikes(0.5)), case.weight(torch.float16)
    assert torch.equal(y, reference.spike_conv(bits, weight, 1, 1, torch.float16))


def test_rows_that_32_bits_cannot_count_are_left_to_pytorch() -> None:
    bits = torch.zeros(1, dtype=torch.int64).expand(1, 1, 2**26, 1)
    native_only = kernels.spike_conv.__wrapped__
    with pytest.raises(native.Unsupported, match="rows of 67108864 positions with 64 channels"):
        native_only(bits, randn(1, 64, 1, 1), 1, 0, torch.float64)


@pytest.mark.parametrize(
    ("shape", "channels", "options", "message"),
    [
        ((1, 4, 4, 1), 65, (1, 1), r"bits is torch.int64 \[1, 4, 4, 1\]: expected torch.int64"),
        ((4, 4, 1), 3, (1, 1), r"bits is torch.int64 \[4, 4, 1\]: expected torch.int64"),
        ((1, 4, 4, 1), 3, (0, 1), "stride=0, padding=1: expected a kernel that fits"),
        ((1, 4, 4, 1), 3, (1, -1), "stride=1, padding=-1: expected a kernel that fits"),
        ((1, 2, 9, 1), 3, (1, 0), "kernel_size=3, stride=1, padding=0: expected a kernel"),
        ((1, 4, 4, 0), 0, (1, 1), "channels=0, kernel_size=3, stride=1, padding=1: expected"),
    ],
)
def test_bad_arguments_are_refused(
    shape: tuple[int, ...], channels: int, options: tuple[int, int], message: str
) -> None:
    bits = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        spike_conv(bits, randn(2, channels, 3, 3), *options, torch.float64)
    with pytest.raises(InputError, match=message):
        spike_conv_weight_grad(bits, randn(1, 4, 4, 2), channels, 3, *options)


def test_weights_and_gradients_of_other_shapes_are_refused() -> None:
    bits = torch.zeros(1, 4, 4, 1, dtype=torch.int64)
    with pytest.raises(InputError, match=r"weight has shape \[2, 3, 3, 1\]: expected \[O, I, k, k"):
        spike_conv(bits, randn(2, 3, 3, 1), 1, 1, torch.float64)
    with pytest.raises(InputError, match=r"grad has shape \[1, 4, 3, 2\]: expected \[1, 4, 4\]"):
        spike_conv_weight_grad(bits, randn(1, 4, 3, 2), 3, 3, 1, 1)
    with pytest.raises(InputError, match=r"bits is torch\.int32"):
        spike_conv(bits.int(), randn(2, 3, 3, 3), 1, 1, torch.float64)
