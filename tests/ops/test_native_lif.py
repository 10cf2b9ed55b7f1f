"""The native kernels of `lif`: equal to the reference, and to each other to the last bit."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spikeformers.ops import SURROGATES
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.lif import eager, reference
from spikeformers.ops.lif.op import lif_backward_op, lif_op
from tests.helpers import assert_spikes_close, randn
from tests.ops.levels import (
    DTYPES,
    LIBRARIES,
    SETTINGS,
    assert_same_bits,
    misaligned,
    natively,
)

# Blocks have 64 to 256 neurons: sizes around them, and time from 1 to 7 steps.
SHAPES = [(1, 1), (2, 63), (3, 64), (4, 65), (5, 255), (6, 257), (7, 5, 3, 7)]
OPTIONS = list(itertools.product([0.0, None, -0.5], [True, False], [True, False], [True, False]))
BEST = next(iter(LIBRARIES))


def tensors(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    return dict(
        x=2 * randn(*shape, seed=seed, dtype=dtype),
        v0=randn(*shape[1:], seed=seed + 1, dtype=wide),
        grad_spikes=randn(*shape, seed=seed + 2, dtype=dtype),
        grad_v=randn(*shape[1:], seed=seed + 3, dtype=wide),
    )


def run(
    x: Tensor,
    v0: Tensor | None,
    grad_spikes: Tensor,
    grad_v: Tensor,
    neuron: tuple[Any, ...],
    surrogate: str = "sigmoid",
) -> tuple[Tensor, ...]:
    """Spikes, last membrane, and the gradients of `x` and `v0`."""
    v_reset, decay_input, detach_reset, strict = neuron
    numbers = [torch.tensor(n, dtype=membrane_dtype(x)) for n in (0.7, 0.6)]
    options = (v_reset, decay_input, detach_reset, surrogate, 1.7, strict)
    outputs = lif_op(x, v0, *numbers, *options)
    return *outputs, *lif_backward_op(grad_spikes, grad_v, x, v0, *numbers, *options, False)[:2]


@pytest.mark.parametrize("neuron", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_and_threads_agree_to_the_last_bit(
    dtype: torch.dtype, neuron: tuple[Any, ...]
) -> None:
    cases = [(shape, name) for shape, name in zip(SHAPES, itertools.cycle(SURROGATES))]
    for shape, surrogate in [*cases, ((3, 30_000), "sigmoid")]:
        given = tensors(shape, dtype)
        results = {}
        for level, threads in SETTINGS:
            with natively(level, threads):
                results[level, threads] = run(**given, neuron=neuron, surrogate=surrogate)
        for setting, result in results.items():
            assert_same_bits(result, results[SETTINGS[-1]], f"{setting} {shape} {surrogate}")


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("neuron", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_equal_the_reference(
    dtype: torch.dtype, neuron: tuple[Any, ...], surrogate: str
) -> None:
    """Spikes and membranes to the last bit; a 16-bit gradient is rounded once, up or down."""
    v_reset, decay_input, detach_reset, strict = neuron
    close = {
        torch.float64: dict(rtol=1e-12, atol=1e-12),
        torch.float32: dict(rtol=1e-5, atol=1e-5),
        torch.bfloat16: dict(rtol=2**-7, atol=1e-5),
    }[dtype]
    for shape, with_start in itertools.product(SHAPES[1::2] + SHAPES[-1:], (True, False)):
        given = tensors(shape, dtype)
        given["v0"] = given["v0"] if with_start else None
        with natively(BEST):
            spikes, v, grad_x, grad_v0 = run(**given, neuron=neuron, surrogate=surrogate)
        x, v0 = given["x"], given["v0"]
        numbers = [torch.tensor(n, dtype=v.dtype) for n in (0.7, 0.6)]
        options = (v_reset, decay_input, detach_reset, surrogate, 1.7, strict)
        expected, expected_v, h = reference.lif_forward(x, v0, *numbers, *options)
        assert_spikes_close(f"{shape}", spikes, expected, h, 0.6, flips=0)
        assert torch.equal(v, expected_v)
        grads = reference.lif_backward(
            given["grad_spikes"], given["grad_v"], x, v0, *numbers, *options
        )
        torch.testing.assert_close(grad_x, grads[0], **close)
        torch.testing.assert_close(grad_v0, grads[1], **dict(close, rtol=min(close["rtol"], 1e-5)))


@pytest.mark.parametrize("value", [0.0, 1.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_without_memory_of_its_own(dtype: torch.dtype, value: float) -> None:
    """Where nobody reads the final membrane, its gradient is one zero."""
    given = tensors((4, 3, 65), dtype)
    given["grad_v"] = given["grad_v"].new_full((), value).expand(given["grad_v"].shape)
    dense = given | {"grad_v": given["grad_v"].contiguous()}
    for level in LIBRARIES:
        with natively(level):
            results = [run(**case, neuron=(0.0, True, True, False)) for case in (given, dense)]
        assert_same_bits(*results, f"{level}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_fires_and_everything_fires(dtype: torch.dtype) -> None:
    for level, (fill, rate) in itertools.product(LIBRARIES, ((0.0, 0), (100.0, 1))):
        given = tensors((3, 130), dtype) | {"v0": None}
        given["x"] = torch.full_like(given["x"], fill)
        with natively(level):
            spikes, *_ = run(**given, neuron=(0.0, True, True, False))
        assert (spikes == rate).all(), (level, fill)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        misaligned,
        lambda x: x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2]),
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::2],
        lambda x: x[:, :1].expand(x.shape),
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["misaligned", "channels last", "transposed", "strided", "same samples", "same steps"],
)
def test_memory_layout_does_not_matter(view: Any, dtype: torch.dtype) -> None:
    """The layout of channels last is kept, and is what compilers are told beforehand."""
    given = {
        name: view(t) if t.ndim == 5 else view(t[None].expand(3, *t.shape))[0]
        for name, t in tensors((3, 2, 5, 4, 6), dtype).items()
    }
    plain = {name: t.contiguous() for name, t in given.items()}
    neuron = (None, True, False, False)
    with natively(BEST):
        results, expected = run(**given, neuron=neuron), run(**plain, neuron=neuron)
    assert_same_bits(results, expected, "layout")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = run(**{name: mode.from_tensor(t) for name, t in given.items()}, neuron=neuron)
    assert [t.stride() for t in results] == [t.stride() for t in fakes]


def test_results_larger_than_the_caches_are_the_same() -> None:
    given = tensors((4, 600_001), torch.float32)
    neuron = (0.0, True, True, False)
    numbers = torch.tensor(0.7), torch.tensor(0.6)
    spikes, v = eager.lif_forward(given["x"], given["v0"], *numbers, *neuron[:2], False)
    for level in LIBRARIES:
        with natively(level, 3):
            results = run(**given, neuron=neuron)
        assert_same_bits(results[:2], (spikes, v), level)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_exponential_of_our_own_is_exact_enough(dtype: torch.dtype) -> None:
    """A few units in the last place, and what rounding x once more would make of e^x.

    One step with `h = x` and threshold 0: the gradient is the derivative of the sigmoid at x.
    """
    x = torch.linspace(-30, 30, 100_001, dtype=dtype)[None]
    zero = torch.tensor(0.0, dtype=dtype)
    options = (0.0, False, True, "sigmoid", 1.0, False)
    with natively(BEST):
        slope = lif_backward_op(
            torch.ones_like(x), torch.zeros_like(x[0]), x, None, zero, zero, *options, False
        )[0]
    e = torch.exp(-x.double().abs())
    exact, half_a_unit = e / (1 + e) ** 2, torch.finfo(dtype).eps / 2
    error = (slope.double() - exact).abs() / exact
    assert (error <= half_a_unit * (8 + x.double().abs())).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_spreads_and_infinity_fires(dtype: torch.dtype) -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]] * 2, dtype=dtype)
    given = tensors((2, 4), dtype) | {"x": x, "v0": None}
    for level in LIBRARIES:
        with natively(level):
            spikes, v, grad_x, _ = run(**given, neuron=(None, True, True, False))
        assert spikes[0].tolist() == [0, 1, 0, 0], level
        assert v[0].isnan() and grad_x[:, 0].isnan().all() and grad_x[:, 3].isfinite().all()
