"""The op `dsr` against numpy, against autograd through the clip, and as a citizen of PyTorch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, dsr
from spikeformers.ops.dsr import represent
from spikeformers.ops.dsr.op import dsr_backward_op, dsr_op
from spikeformers.types import ANALOG, Alphabet
from tests.helpers import assert_same, compositions, randn

Options = dict[str, Any]

IF: Options = dict(alpha=0.5, tau=None, dt=1.0)
LIF: Options = dict(alpha=0.3, tau=1.2, dt=0.5)
SHAPES = [(5,), (4, 3), (3, 2, 3, 7), (1, 2, 3, 3, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
V_THRESHOLD = torch.tensor(0.7, dtype=torch.float64)

each_neuron = pytest.mark.parametrize("options", [IF, LIF], ids=["IF", "LIF"])


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def currents(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Below, inside and above the clip."""
    return (0.4 + 1.2 * randn(*shape[1:], seed=seed) + 0.5 * randn(*shape, seed=seed + 1)).to(dtype)


@each_neuron
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_in_numpy(shape: tuple[int, ...], options: Options) -> None:
    x, v0 = currents(*shape), randn(*shape[1:], seed=3)
    decay = 1.0 if options["tau"] is None else math.exp(-options["dt"] / options["tau"])
    gain = 1.0 if options["tau"] is None else 1 - decay
    for start in (None, v0):
        v = np.zeros(shape[1:]) if start is None else start.numpy()
        expected = np.zeros(shape)
        for t, current in enumerate(x.numpy()):
            v = decay * v + gain * current
            fired = v >= options["alpha"] * 0.7
            expected[t] = fired * 0.7 / options["dt"]
            v = v - 0.7 * fired
        y, end = dsr(x, start, v_threshold=V_THRESHOLD, **options)
        assert_same(y, torch.as_tensor(expected))
        assert_same(end, torch.as_tensor(v))


def test_equality_fires() -> None:
    x = torch.tensor([[0.5, 0.4999]])
    assert dsr(x, v_threshold=torch.tensor(1.0))[0].tolist() == [[1.0, 0.0]]


@each_neuron
def test_the_representation_weighs_by_age(options: Options) -> None:
    z = randn(4, 5, seed=4)
    decay = 1.0 if options["tau"] is None else math.exp(-options["dt"] / options["tau"])
    weights = np.array([decay ** (3 - t) for t in range(4)])
    expected = torch.as_tensor(np.average(z.numpy(), axis=0, weights=weights))
    assert_same(represent(z, options["tau"], options["dt"]), expected)


@each_neuron
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_clip(shape: tuple[int, ...], options: Options) -> None:
    """Each step gets its share of what the clip says; the threshold's has `dt` for `1 / dt`."""
    x, v_threshold = currents(*shape).requires_grad_(), V_THRESHOLD.clone().requires_grad_()
    y, v = dsr(x, v_threshold=v_threshold, threshold_grad=0.25, **options)
    assert not v.requires_grad
    cotangent = randn(*shape, seed=5)
    grad_x, grad_threshold = torch.autograd.grad(y, (x, v_threshold), cotangent)

    tau, dt, steps = options["tau"], options["dt"], len(x)
    given = represent(x.detach(), tau, dt).requires_grad_()
    bound = V_THRESHOLD.clone().requires_grad_()
    zero = torch.zeros_like(given)
    clipped = torch.minimum(torch.maximum(given / (tau or 1), zero), bound / dt)
    total = steps * represent(cotangent, tau, dt)
    expected, expected_bound = torch.autograd.grad(clipped, (given, bound), total)
    assert_same(grad_x, (expected / steps).expand_as(x))
    assert_same(grad_threshold, 0.25 * dt**2 * expected_bound)
    if len(given.flatten()) > 4:
        assert 0 < (expected != 0).double().mean() < 1 and expected_bound != 0


@each_neuron
def test_the_ends_of_the_clip_belong_to_it_for_if_only(options: Options) -> None:
    ceiling = 1.0 if options["tau"] is None else 1.0 * options["tau"] / options["dt"]
    x = torch.tensor([[-0.1, 0.0, 0.1, ceiling, ceiling + 0.1]], dtype=torch.float64)
    x.requires_grad_()
    y, _ = dsr(x, v_threshold=V_THRESHOLD.clone().fill_(1.0), **options)
    (grad,) = torch.autograd.grad(y.sum(), x)
    ends = options["tau"] is None
    assert (grad != 0).tolist() == [[False, ends, True, ends, False]]


@each_neuron
def test_any_chunking_equals_one_pass(options: Options) -> None:
    x = currents(5, 4, 3)
    expected, end = dsr(x, v_threshold=V_THRESHOLD, **options)
    for lengths in compositions(5):
        v, parts = None, []
        for part in x.split(lengths):
            y, v = dsr(part, v, v_threshold=V_THRESHOLD, **options)
            parts.append(y)
        assert torch.equal(torch.cat(parts), expected) and v is not None and torch.equal(v, end)


@each_neuron
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, options: Options) -> None:
    x = currents(3, 2, 3, dtype=dtype).requires_grad_()
    v_threshold = V_THRESHOLD.to(dtype, copy=True).requires_grad_()
    y, v = dsr(x, v_threshold=v_threshold, **options)
    assert (y.dtype, v.dtype) == (dtype, membrane_dtype(dtype))
    expected, _ = dsr(
        x.detach().to(v.dtype), v_threshold=v_threshold.detach().to(v.dtype), **options
    )
    assert torch.equal(y, expected.to(dtype))
    grads = torch.autograd.grad(y.sum(), (x, v_threshold))
    assert [grad.dtype for grad in grads] == [dtype, dtype]


@each_neuron
def test_is_a_proper_operator(options: Options) -> None:
    x, v0 = currents(3, 2, 3).requires_grad_(), randn(2, 3, seed=3)
    v_threshold = V_THRESHOLD.clone().requires_grad_()
    for start in (None, v0):
        torch.library.opcheck(dsr_op, (x, start, v_threshold, *options.values(), 1.0))
    inside = torch.rand(2, 3) > 0.5
    given = (x.detach(), inside, ~inside, options["tau"], options["dt"])
    torch.library.opcheck(dsr_backward_op, given)


@pytest.mark.parametrize("threshold_is_mapped", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_vmap_equals_a_loop(starts: bool, threshold_is_mapped: bool) -> None:
    x, v0 = currents(3, 4, 2), randn(4, 2, seed=3)
    v_threshold = torch.linspace(0.3, 0.9, 4, dtype=torch.float64)
    v_threshold = v_threshold if threshold_is_mapped else V_THRESHOLD

    def run(x: Tensor, v0: Tensor, v_threshold: Tensor) -> tuple[Tensor, Tensor]:
        return dsr(x, v0 if starts else None, v_threshold=v_threshold, **LIF)

    dims = (1, 0, 0 if threshold_is_mapped else None)
    y, v = torch.vmap(run, in_dims=dims, out_dims=(1, 0))(x, v0, v_threshold)
    for i in range(4):
        one = run(x[:, i], v0[i], v_threshold[i] if threshold_is_mapped else v_threshold)
        assert torch.equal(y[:, i], one[0]) and torch.equal(v[i], one[1])


def test_the_output_is_binary_with_a_learned_height() -> None:
    alphabets = OUTPUT_ALPHABETS["spikeformers::dsr"]()
    assert alphabets[:2] == (Alphabet(0, 1, None), ANALOG)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(alpha=0.0), "alpha=0.0"),
        (dict(alpha=1.5), "alpha=1.5"),
        (dict(dt=0.5), "dt=0.5"),
        (dict(tau=0.0), "tau=0.0"),
        (dict(tau=1.0, dt=-1.0), "dt=-1.0"),
        (dict(v_threshold=torch.ones(3)), r"v_threshold has shape \[3\]"),
        (dict(v0=torch.zeros(4)), "v0 is"),
    ],
)
def test_bad_arguments_are_named(options: Options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dsr(torch.zeros(2, 3), **{"v_threshold": torch.tensor(1.0), **options})
