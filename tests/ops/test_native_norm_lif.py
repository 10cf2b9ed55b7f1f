"""The native kernels on bits and matrices `[T, R, C]`: equal to the reference and to each other."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformers.ops import SURROGATES, bits
from spikeformers.ops.norm_lif import native, reference
from tests.helpers import randn, random_spikes
from tests.ops.levels import (
    DTYPES,
    LIBRARIES,
    SETTINGS,
    assert_same_bits,
    misaligned,
    natively,
)

# Few and many channels, around words and vectors; few and many rows, around tiles.
SHAPES = [(1, 1, 1), (2, 41, 65), (3, 5, 3), (4, 7, 130), (5, 2, 1100), (6, 300, 16), (7, 3, 64)]
NEURONS = list(itertools.product([0.0, None, -0.5], [True, False], [True, False]))
BEST = next(iter(LIBRARIES))

Case = dict[str, Tensor]
Results = tuple[Tensor, ...]


def case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    wide, channels = torch.float32 if dtype.itemsize == 2 else dtype, shape[2]
    return dict(
        y=randn(*shape, seed=1, dtype=dtype),
        residual=randn(*shape, seed=2, dtype=dtype),
        gain=1.5 + 0.3 * randn(channels, seed=3, dtype=wide),
        offset=0.3 + 0.3 * randn(channels, seed=4, dtype=wide),
        grad=randn(*shape, seed=5, dtype=dtype),
        grad_stream=randn(*shape, seed=6, dtype=dtype),
        decay=torch.tensor(0.7, dtype=wide),
        v_threshold=torch.tensor(0.6, dtype=wide),
    )


def without_neuron(module: Any, given: Case) -> Results:
    y, residual, gain, offset = (given[name] for name in ("y", "residual", "gain", "offset"))
    in_place = given["grad"].clone()
    module.norm_backward_(in_place, y, gain, offset, -gain)
    return (
        *module.channel_moments(y),
        module.norm_add(y, residual, gain, offset),
        module.norm_add(y, residual, None, None),
        module.norm_add(y, None, gain, offset),
        module.norm_backward(given["grad"], y, gain, offset, -gain),
        in_place,
        *module.norm_products(given["grad"], y),
    )


def forward(module: Any, given: Case, neuron: tuple[Any, ...], kept: bool) -> Results:
    """Bits and stream: of a norm alone, or of norm and residual with the stream kept."""
    v_reset, decay_input, _ = neuron
    tensors = [given[name] for name in ("gain", "offset", "decay", "v_threshold")]
    residual = given["residual"] if kept else None
    return module.norm_lif(given["y"], residual, *tensors, v_reset, decay_input, False, kept)


def backward(
    module: Any, given: Case, fired: Results, neuron: tuple[Any, ...], kept: bool, surrogate: str
) -> Results:
    tensors = [given[name] for name in ("gain", "offset", "decay", "v_threshold")]
    bits_of, stream = fired
    grad = given["grad"]
    given_grad = grad.clone()
    grads = module.norm_lif_backward_(
        grad,
        given["grad_stream"] if kept else None,
        bits_of,
        given["y"],
        stream if kept else None,
        *tensors,
        *neuron,
        surrogate,
        1.7,
    )
    grad_x = grad.clone()
    grad.copy_(given_grad)  # for the next one
    return grad_x, *grads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 700, 48)], ids=str)
def test_levels_and_threads_agree_to_the_last_bit(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    given = case(shape, dtype)
    results = {}
    for level, threads in SETTINGS:
        with natively(level, threads):
            parts = [without_neuron(native, given)]
            for (neuron, surrogate), kept in itertools.product(
                zip(NEURONS[::2], SURROGATES, strict=False), (False, True)
            ):
                fired = forward(native, given, neuron, kept)
                parts += [fired, backward(native, given, fired, neuron, kept, surrogate)]
            results[level, threads] = tuple(t for part in parts for t in part)
    for setting, result in results.items():
        assert_same_bits(result, results[SETTINGS[-1]], str(setting))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_they_equal_the_reference(neuron: tuple[Any, ...], dtype: torch.dtype, kept: bool) -> None:
    """Spikes and stream to the last bit; sums over rows in another order."""
    close = {
        torch.float64: dict(rtol=1e-12, atol=1e-12),
        torch.float32: dict(rtol=1e-5, atol=2e-5),
        torch.bfloat16: dict(rtol=2**-7, atol=2e-5),
    }[dtype]
    for shape, surrogate in zip(SHAPES, itertools.cycle(SURROGATES), strict=False):
        given = case(shape, dtype)
        fired = forward(reference, given, neuron, kept)
        with natively(BEST):
            ours = forward(native, given, neuron, kept)
            grads = backward(native, given, fired, neuron, kept, surrogate)
        assert_same_bits(ours, fired, str(shape))
        expected = backward(reference, given, fired, neuron, kept, surrogate)
        torch.testing.assert_close(grads[0], expected[0], **close)
        scale = dict(rtol=1e-5, atol=1e-5 * shape[0] * shape[1])  # a sum of so many numbers
        torch.testing.assert_close(
            grads[1:], expected[1:], **(close if dtype.itemsize == 8 else scale)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_equal_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = case(shape, dtype)
    with natively(BEST):
        results = without_neuron(native, given)
    close = {
        torch.float64: dict(rtol=1e-12, atol=1e-12),
        torch.float32: dict(rtol=1e-5, atol=1e-4),
        torch.bfloat16: dict(rtol=2**-7, atol=1e-4),
    }[dtype]
    torch.testing.assert_close(results, without_neuron(reference, given), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moments_survive_a_large_mean(dtype: torch.dtype) -> None:
    """The variance of numbers around 1000, which squares in float32 would lose."""
    y = (1000 + randn(4, 500, 33, seed=1)).to(dtype)
    for level in LIBRARIES:
        with natively(level):
            mean, var = native.channel_moments(y)
        expected = torch.var_mean(y.double(), (0, 1), correction=0)
        torch.testing.assert_close(var.double(), expected[0], rtol=1e-4, atol=0)
        torch.testing.assert_close(mean.double(), expected[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        misaligned,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
    ],
    ids=["misaligned", "transposed", "strided"],
)
def test_memory_layout_does_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    plain, neuron = case((3, 7, 65), torch.float32), NEURONS[0]
    given = plain | {n: view(t) for n, t in plain.items() if t.ndim == 3}
    with natively(BEST):
        assert_same_bits(without_neuron(native, given), without_neuron(native, plain), "norm")
        fired = forward(native, plain, neuron, True)
        assert_same_bits(forward(native, given, neuron, True), fired, "forward")
        viewed = tuple(view(t) for t in fired)
        assert_same_bits(
            backward(native, given, viewed, neuron, True, "atan"),
            backward(native, plain, fired, neuron, True, "atan"),
            "backward",
        )


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 8, 63, 64, 65, 130, 1000])
def test_bits_are_packed_and_unpacked(channels: int, dtype: torch.dtype, rate: float) -> None:
    spikes = random_spikes(2, 37, channels, rate=rate).to(dtype)
    expected = bits.pack_reference(spikes)
    for level, threads in SETTINGS:
        with natively(level, threads):
            for view in (
                spikes,
                misaligned(spikes),
                spikes.transpose(0, 1).contiguous().transpose(0, 1),
            ):
                assert torch.equal(bits.pack(view), expected), level
            assert torch.equal(bits.unpack(misaligned(expected), channels, dtype), spikes), level
