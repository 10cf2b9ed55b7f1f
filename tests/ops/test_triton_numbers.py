"""The Triton kernels against the reference: on a GPU, or interpreted on a CPU.

Triton's interpreter has to be chosen before Triton is imported, so `test_triton_sm90.py` runs this
file in a process of its own.
"""

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformers.ops import SURROGATES, triton_bits, triton_tiles
from spikeformers.ops.bits import pack_reference
from spikeformers.ops.checks import in_steps, membrane_dtype
from spikeformers.ops.lif import eager
from spikeformers.ops.lif import triton as lif_kernels
from spikeformers.ops.norm_lif import reference
from spikeformers.ops.norm_lif import triton as norm_kernels
from tests.helpers import randn, random_spikes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED:
    pytestmark = pytest.mark.gpu

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Where the interpreter stores a bfloat16, it cuts off digits; processors round.
ROUNDED = DTYPES[:3] if INTERPRETED else DTYPES
CLOSE = {
    8: dict(atol=1e-11, rtol=1e-11),
    4: dict(atol=2e-5, rtol=2e-5),
    2: dict(atol=1e-2, rtol=2e-2),
}
RESETS = [0.0, None, 0.3, -0.5]
BOTH = [True, False]
# Time steps, rows, channels: one, a whole word, tails, more than a program keeps in registers.
SHAPES = [(1, 5, 3), (2, 37, 64), (3, 17, 70), (4, 4, 129), (18, 3, 1)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_rounded = pytest.mark.parametrize("dtype", ROUNDED, ids=str)
each_reset = pytest.mark.parametrize("v_reset", RESETS)


def on_device(argument: Any) -> Any:
    return argument.cuda() if isinstance(argument, Tensor) and not INTERPRETED else argument


def run(kernel: Any, *arguments: Any) -> list[Tensor]:
    """Run a kernel where it belongs and bring its results back."""
    results = kernel(*map(on_device, arguments))
    return [t.cpu() for t in ([results] if isinstance(results, Tensor) else results)]


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(list(actual), list(expected), atol=0, rtol=0)


def assert_close(actual: Any, expected: Any) -> None:
    """Equal up to rounding in the dtype of each tensor."""
    for ours, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, truth, **CLOSE[truth.dtype.itemsize])


@each_reset
@each_dtype
def test_lif_equals_the_reference(dtype: torch.dtype, v_reset: float | None) -> None:
    """Spikes and membrane bit for bit, gradients up to rounding, in every form of the neuron."""
    shapes = [(5,), (4, 3), (3, 2, 3, 7), (1, 2, 3, 3, 2), (18, 2, 3)]
    forms = zip(itertools.product(BOTH, BOTH, BOTH), itertools.cycle(SURROGATES), strict=False)
    for k, ((decay_input, detach_reset, strict), surrogate) in enumerate(forms):
        shape = shapes[k % len(shapes)]
        x = 2 * randn(*shape, seed=k).to(dtype)
        wide = membrane_dtype(x)
        v0 = randn(*shape[1:], seed=k + 50, dtype=wide) if k % 3 else None
        parameters = (3,) if len(shape) > 2 and k % 2 else ()
        decay = (0.5 + 0.2 * randn(*parameters, seed=3).tanh()).to(wide)
        v_threshold = (0.7 + 0.2 * randn(*parameters, seed=4).tanh()).to(wide)
        neuron = (x, v0, decay, v_threshold, v_reset, decay_input)
        spikes_and_v = run(lif_kernels.lif_forward, *neuron, strict)
        assert_equal(spikes_and_v, eager.lif_forward(*neuron, strict))

        cotangents = randn(*shape, seed=90, dtype=dtype), randn(*shape[1:], seed=91, dtype=wide)
        options = (detach_reset, surrogate, SURROGATES[surrogate].alpha, strict)
        grads = run(lif_kernels.lif_backward, *cotangents, *neuron, *options, True)
        expected = eager.summed_gradients(*cotangents, *neuron, *options)
        assert_close(grads, expected)
        fixed = run(lif_kernels.lif_backward, *cotangents, *neuron, *options, False)
        assert_equal(fixed, [*grads[:2], 0 * decay, 0 * v_threshold])


def test_lif_takes_channels_last_and_per_channel_parameters() -> None:
    x = randn(3, 2, 5, 4, 3).movedim(-1, 2)
    assert in_steps(x) is x
    decay, v_threshold = torch.linspace(0.1, 0.9, 3).double(), torch.linspace(0.2, 0.6, 3).double()
    neuron = (x, x[0], decay, v_threshold, 0.0, True)
    results = run(lif_kernels.lif_forward, *neuron, False)
    assert_equal(results, eager.lif_forward(*neuron, False))
    assert results[0].stride() == x.stride()
    options = (True, "atan", 2.0, False)
    grads = run(lif_kernels.lif_backward, x.contiguous(), x[1], *neuron, *options, True)
    assert_close(grads, eager.summed_gradients(x, x[1], *neuron, *options))
    assert grads[0].stride() == x.stride()


def test_nothing_is_launched_for_an_empty_batch() -> None:
    x = torch.empty(3, 0, 4)
    results = run(
        lif_kernels.lif_forward, x, None, torch.tensor(0.5), torch.tensor(1.0), 0.0, True, False
    )
    assert [r.shape for r in results] == [(3, 0, 4), (0, 4)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (17, 64), (2, 3, 65), (40, 130)], ids=str)
def test_bits_equal_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for rate in (0, 0.3, 1):
        spikes = random_spikes(*shape, rate=rate).to(dtype)
        (bits,) = run(triton_bits.pack, spikes)
        assert_equal([bits], [pack_reference(spikes)])
        assert_equal(run(triton_bits.unpack, bits, shape[-1], dtype), [spikes])


@each_rounded
def test_norms_equal_the_reference(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps bit for bit, sums over rows up to rounding, also where several programs share them."""
    for parts, shape in itertools.product((1024, 2), SHAPES):
        monkeypatch.setattr(triton_tiles, "PARTS", parts)
        y, residual = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
        a, b, c = randn(3, shape[-1], seed=2, dtype=membrane_dtype(y))
        for operands in ((residual, a, b), (None, a, b), (residual, None, None)):
            stream = run(norm_kernels.norm_add, y, *operands)
            assert_equal(stream, [reference.norm_add(y, *operands)])
        grad_y = run(norm_kernels.norm_backward, residual, y, a, b, c)
        assert_equal(grad_y, [reference.norm_backward(residual, y, a, b, c)])
        products = run(norm_kernels.norm_products, residual, y)
        assert_close(products, reference.norm_products(residual, y))
        moments = run(norm_kernels.channel_moments, y + 1)
        assert_close(moments, reference.channel_moments(y + 1))


def test_moments_survive_a_mean_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "PARTS", 3)
    y = (100 + 1e-2 * randn(2, 300, 3)).float()
    mean, var = run(norm_kernels.channel_moments, y)
    true_var, true_mean = torch.var_mean(y.double(), (0, 1), correction=0)
    torch.testing.assert_close(mean.double(), true_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(var.double(), true_var, atol=0, rtol=1e-3)


@each_reset
@each_rounded
def test_norm_lif_equals_the_reference(
    dtype: torch.dtype, v_reset: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits and stream bit for bit, gradients up to rounding, with and without norm and residual."""
    monkeypatch.setattr(triton_tiles, "PARTS", 2)
    forms = zip(itertools.product(BOTH, BOTH, BOTH), itertools.cycle(SURROGATES), strict=False)
    for k, ((decay_input, detach_reset, strict), surrogate) in enumerate(forms):
        shape = SHAPES[(k + RESETS.index(v_reset)) % len(SHAPES)]
        y = (1 + 2 * randn(*shape, seed=k)).to(dtype)
        wide = membrane_dtype(y)
        residual = randn(*shape, seed=20, dtype=dtype) if k % 2 else None
        keeps_stream = k % 2 == 1 or k % 4 == 2
        norm = randn(2, shape[-1], seed=21).add(1).to(wide) if k % 3 else (None, None)
        decay, v_threshold = torch.tensor(0.6, dtype=wide), torch.tensor(0.7, dtype=wide)
        neuron = (decay, v_threshold, v_reset, decay_input)

        forward = (y, residual, *norm, *neuron, strict, keeps_stream)
        bits, stream = run(norm_kernels.norm_lif, *forward)
        assert_equal((bits, stream), reference.norm_lif(*forward))

        grads = randn(2, *shape, seed=22, dtype=dtype)
        kept = (bits, y, stream) if keeps_stream else (bits, y, None)
        options = (*neuron, detach_reset, surrogate, SURROGATES[surrogate].alpha)
        others = (grads[1] if keeps_stream else None, *kept, *norm, *options)
        grad_x, expected_grad_x = on_device(grads[0]).clone(), grads[0].clone()
        sums = run(norm_kernels.norm_lif_backward_, grad_x, *others)
        expected_sums = reference.norm_lif_backward_(expected_grad_x, *others)
        results, expected = (grad_x.cpu(), *sums), (expected_grad_x, *expected_sums)
        assert [r.shape for r in results] == [r.shape for r in expected]
        assert_close(results[:1], expected[:1])
        # Sums over rows: the rounding grows with their number.
        for ours, truth in zip(results[1:], expected[1:], strict=True):
            torch.testing.assert_close(
                ours, truth, atol=1e-4 if wide.itemsize == 4 else 1e-10, rtol=1e-4
            )
