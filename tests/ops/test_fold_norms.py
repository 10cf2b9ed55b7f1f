"""Norms in a row as one affine map: the reference against autograd, the kernel against both."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformers.ops.fold_norms import Folded, Moments, Norm, native, reference
from tests.helpers import assert_same, randn
from tests.ops.levels import LIBRARIES, SETTINGS, assert_same_bits, misaligned, natively

BEST = next(iter(LIBRARIES))
CHANNELS = [1, 3, 8, 65, 1100]
# Which norms are in training mode: it changes what the ones in front of them owe them.
MODES = [m for k in (1, 2, 3) for m in itertools.product([True, False], repeat=k)]
MODES_IDS = ["-".join("train" if trains else "eval" for trains in mode) for mode in MODES]
all_modes = pytest.mark.parametrize("mode", MODES, ids=MODES_IDS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)

Fold = Callable[[Sequence[Norm], Tensor | None, Moments | None], Folded]


def norms(mode: Sequence[bool], channels: int, dtype: torch.dtype) -> list[Norm]:
    """Return norms of their own; a second call gives equal ones."""

    def vector(seed: int, shift: float = 0.0) -> Tensor:
        return shift + 0.3 * randn(channels, seed=seed, dtype=dtype)

    return [
        Norm(
            *(vector(10 * i + j, shift) for j, shift in enumerate((1.5, 0.0, 0.5))),
            vector(10 * i + 3).abs() + 0.2,
            1e-3,
            0.3,
            trains,
        )
        for i, trains in enumerate(mode)
    ]


def moments(channels: int, dtype: torch.dtype, total: float = 12) -> Moments:
    mean, var = randn(channels, seed=91, dtype=dtype), randn(channels, seed=92, dtype=dtype)
    return Moments(mean, var.abs() + 0.5, total)


def both_ways(
    module: object, mode: Sequence[bool], channels: int, dtype: torch.dtype, has_bias: bool = True
) -> tuple[Tensor, ...]:
    """Return all that folding and its way back compute, the running statistics included."""
    given, seen = norms(mode, channels, dtype), moments(channels, dtype)
    bias = randn(channels, seed=93, dtype=dtype) if has_bias else None
    grads = (randn(channels, seed=seed, dtype=dtype) for seed in (94, 95))
    folded = module.fold_norms(given, bias, seen if any(mode) else None)
    back = module.fold_norms_backward(*grads, mode, seen if any(mode) else None, folded.tape)
    return (*folded, *back, *(v for norm in given for v in norm[2:4]))


@all_modes
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_pytorchs_batch_norm(mode: Sequence[bool], has_bias: bool) -> None:
    """Output, running statistics and all gradients of norms one after the other."""
    y, bias = 2 + randn(7, 5, seed=1).requires_grad_(), randn(5, seed=2).requires_grad_()
    theirs, ours = norms(mode, 5, torch.float64), norms(mode, 5, torch.float64)
    parameters = [p.requires_grad_() for norm in theirs for p in norm[:2]]
    x = y + bias if has_bias else y
    for weight, offset, mean, var, eps, momentum, trains in theirs:
        x = F.batch_norm(x, mean, var, weight, offset, trains, momentum, eps)
    grad_x = randn(7, 5, seed=3)
    grad_y, *grads = torch.autograd.grad(x, [y, *parameters, *([bias] if has_bias else [])], grad_x)

    plain = y.detach()
    var, mean = torch.var_mean(plain, 0, correction=0)
    seen = Moments(mean, var, len(plain)) if any(mode) else None
    gain, offset, tape = reference.fold_norms(ours, bias.detach() if has_bias else None, seen)
    assert_same(gain * plain + offset, x)
    sums = (grad_x * plain).sum(0), grad_x.sum(0)
    found, (slope, level) = reference.fold_norms_backward(*sums, mode, seen, tape)
    assert_same(gain * grad_x + slope * plain + level, grad_y)
    for one, other in zip(found, grads, strict=False):
        assert_same(one, other)
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one.running_mean, other.running_mean)
        assert_same(one.running_var, other.running_var)


@both_dtypes
@all_modes
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_kernel_equals_the_reference(
    mode: Sequence[bool], dtype: torch.dtype, has_bias: bool
) -> None:
    close = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=1e-6, atol=1e-6)
    for channels in CHANNELS:
        with natively(BEST):
            found = both_ways(native, mode, channels, dtype, has_bias)
        expected = both_ways(reference, mode, channels, dtype, has_bias)
        torch.testing.assert_close(found, expected, **close)


@both_dtypes
@all_modes
def test_levels_agree_to_the_last_bit(mode: Sequence[bool], dtype: torch.dtype) -> None:
    for channels in CHANNELS:
        results = {}
        for level, threads in SETTINGS:
            with natively(level, threads):
                results[level, threads] = both_ways(native, mode, channels, dtype)
        for setting, result in results.items():
            assert_same_bits(result, results[SETTINGS[-1]], f"{setting}, {channels} channels")


@pytest.mark.parametrize("module", [native, reference])
def test_one_value_per_channel_has_no_variance(module: object) -> None:
    norm, seen = norms([True], 3, torch.float64)[0], moments(3, torch.float64, total=1)
    before = norm.running_var.clone()
    module.fold_norms([norm], None, seen._replace(var=torch.zeros(3, dtype=torch.float64)))
    assert_same(norm.running_var, 0.7 * before)


def test_memory_layout_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def laid_out(view: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        given = [n._replace(weight=view(n.weight)) for n in norms([True], 65, torch.float32)]
        seen = moments(65, torch.float32)
        return native.fold_norms(given, view(seen.mean), seen._replace(var=view(seen.var)))

    with natively(BEST):
        expected = laid_out(lambda v: v)
        assert_same_bits(laid_out(misaligned), expected, "misaligned")
    said: list[str] = []
    monkeypatch.setattr("spikeformers.ops.native._log_once", said.append)
    torch.testing.assert_close(laid_out(lambda v: v.repeat_interleave(2)[::2]), expected)
    assert said == ["norms of several dtypes, or with gaps in memory"]


def test_no_channels() -> None:
    with natively(BEST):
        assert all(v.numel() == 0 for v in both_ways(native, [True], 0, torch.float32))


def test_sixteen_bit_parameters_fold_in_float32() -> None:
    plain = [n._replace(training=False) for n in norms([True], 8, torch.bfloat16)]
    gain, offset, tape = native.fold_norms(plain, None, None)
    wide = [Norm(*(v.float() for v in n[:4]), *n[4:]) for n in plain]
    assert_same_bits((gain, offset, tape), native.fold_norms(wide, None, None), "bfloat16")


def test_autograd_notices_that_statistics_have_moved() -> None:
    norm = norms([True], 3, torch.float32)[0]
    before = norm.running_mean._version
    native.fold_norms([norm], None, moments(3, torch.float32))
    assert norm.running_mean._version > before
