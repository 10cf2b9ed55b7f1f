"""The op `lif` against its reference, against numpy and against autograd through smooth steps."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, SURROGATES, lif
from spikeformers.ops.lif import reference
from spikeformers.ops.lif.op import check_lif, lif_backward_op, lif_op
from spikeformers.types import BINARY
from tests.helpers import (
    assert_spikes_close,
    compositions,
    fire_in_numpy,
    integrate,
    leaky,
    randn,
)

Options = dict[str, Any]

SHAPES = [(5,), (4, 3), (5, 2, 3), (3, 2, 3, 7), (4, 2, 3, 5, 1), (1, 2, 3, 3, 2)]
RESETS = [0.0, None, 0.3, -0.5]
OPTIONS: list[Options] = [
    dict(v_reset=v_reset, decay_input=decay_input, detach_reset=detach, strict=strict)
    for v_reset, decay_input, detach, strict in itertools.product(
        RESETS, [True, False], [True, False], [True, False]
    )
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def name_of(options: Options) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def run_reference(
    x: Tensor, v0: Tensor | None, decay: Any, v_threshold: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the plain loop with the op's defaults."""
    like = dict(dtype=membrane_dtype(x.dtype))
    surrogate = options.pop("surrogate", "sigmoid")
    return reference.lif_forward(
        x,
        v0,
        torch.as_tensor(decay, **like),
        torch.as_tensor(v_threshold, **like),
        options.pop("v_reset", 0.0),
        options.pop("decay_input", True),
        options.pop("detach_reset", True),
        surrogate,
        options.pop("alpha", SURROGATES[surrogate].alpha),
        options.pop("strict", False),
    )


# Functions whose derivatives are the surrogates: autograd then needs no surrogate at all.
SMOOTH_STEPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda u, a: torch.sigmoid(a * u),
    "atan": lambda u, a: torch.atan(math.pi / 2 * a * u) / math.pi,
    "rectangle": lambda u, a: a * u.clamp(-0.5 / a, 0.5 / a),
    "tanh": lambda u, a: torch.tanh(a * u.clamp(-1, 1)) / (2 * math.tanh(a)),
    "straight_through": lambda u, _a: u,
}


def run_smoothly(
    x: Tensor,
    v: Tensor,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Compute spikes and membrane anew; smooth steps of value zero carry the gradient."""
    rest, spikes = v_reset or 0.0, []
    axes = [1, -1, *[1] * (v.ndim - 2)]
    decay = decay.view(axes) if decay.ndim else decay
    v_threshold = v_threshold.view(axes) if v_threshold.ndim else v_threshold
    for current in x:
        gained = (1 - decay) * current if decay_input else current
        v = rest + decay * (v - rest) + gained
        u = v - v_threshold
        smooth = SMOOTH_STEPS[surrogate](u, alpha)
        fired = (u > 0) if strict else (u >= 0)
        s = fired.to(x.dtype) + (smooth - smooth.detach())
        spikes.append(s)
        s = s.detach() if detach_reset else s
        v = v - s * v_threshold if v_reset is None else (1 - s) * v + s * v_reset
    return torch.stack(spikes), v


def differentiate(
    run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return outputs and gradients for fixed random cotangents on spikes and membrane."""
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    spikes, v = run(*inputs)[:2]
    cotangents = [randn(*y.shape, seed=90 + i, dtype=y.dtype) for i, y in enumerate((spikes, v))]
    return (spikes, v), torch.autograd.grad((spikes, v), inputs, cotangents)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_equals_the_reference_bitwise(dtype: torch.dtype, options: Options) -> None:
    for seed, shape in enumerate(SHAPES):
        x = 2 * randn(*shape, seed=seed, dtype=dtype)
        v0 = randn(*shape[1:], seed=seed + 50, dtype=membrane_dtype(dtype))
        # 0.6 and 0.7 have no short binary form: a threshold rounded to 16 bits would show.
        values = [(0.7, 0.6)]
        if len(shape) > 2:
            values.append((torch.linspace(0.1, 0.9, 3), torch.linspace(0.3, 0.9, 3)))
        for start, (decay, v_threshold) in itertools.product((None, v0), values):
            spikes, v = lif(x, start, decay=decay, v_threshold=v_threshold, **options)
            expected, expected_v, h = run_reference(x, start, decay, v_threshold, **options)
            assert_spikes_close(f"{dtype} {shape}", spikes, expected, h, 0.6)
            assert torch.equal(v, expected_v)
            assert (spikes.dtype, v.dtype) == (dtype, membrane_dtype(dtype))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("shape", [(5, 2, 3, 2), (1, 1, 3)], ids=str)
def test_gradients_equal_autograd_through_smooth_steps(
    shape: tuple[int, ...], options: Options, surrogate: str
) -> None:
    """For `x`, `v0`, decay and threshold, both as one number and per channel."""
    options = dict(options, surrogate=surrogate, alpha=1.3)
    x, v0 = 2 * randn(*shape, seed=1), randn(*shape[1:], seed=2)
    for parameters in ((), (3,)):
        decay = 0.5 + 0.2 * randn(*parameters, seed=3).tanh()
        v_threshold = 0.7 + 0.2 * randn(*parameters, seed=4).tanh()
        inputs = (x, v0, decay, v_threshold)
        outputs, grads = differentiate(
            lambda x, v0, d, th: lif(x, v0, decay=d, v_threshold=th, **options), *inputs
        )
        expected, expected_grads = differentiate(
            lambda *tensors: run_smoothly(*tensors, **options), *inputs
        )
        torch.testing.assert_close(outputs, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(grads, expected_grads, atol=1e-11, rtol=1e-11)
        through, through_grads = differentiate(
            lambda x, v0, d, th: run_reference(x, v0, d, th, **options), *inputs
        )
        torch.testing.assert_close(through, outputs, atol=0, rtol=0)
        torch.testing.assert_close(through_grads, grads, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("parameters", [(), (3,)], ids=str)
def test_gradients_with_fixed_decay_and_threshold_are_the_same(
    parameters: tuple[int, ...], options: Options, surrogate: str
) -> None:
    """What need not be learned takes a shorter way."""
    options = dict(options, surrogate=surrogate)
    x, v0 = 2 * randn(5, 2, 3, 2, seed=1), randn(2, 3, 2, seed=2)
    decay = 0.5 + 0.2 * randn(*parameters, seed=3).tanh()
    v_threshold = 0.7 + 0.1 * randn(*parameters, seed=4)
    for start in ([], [v0]):
        grads = differentiate(
            lambda x, v=None: lif(x, v, decay=decay, v_threshold=v_threshold, **options), x, *start
        )
        expected = differentiate(
            lambda x, v=None: run_reference(x, v, decay, v_threshold, **options), x, *start
        )
        torch.testing.assert_close(grads, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_membranes_exactly_at_the_threshold_fire_and_learn_like_the_reference(
    options: Options, dtype: torch.dtype
) -> None:
    """Small dyadic numbers: nothing rounds, and many membranes equal the threshold."""
    options = dict(options, surrogate="straight_through")
    if options["v_reset"]:
        options["v_reset"] = math.copysign(0.5, options["v_reset"])
    x = randn(4, 50, seed=1).mul(2).round().to(dtype)
    h = run_reference(x, None, 0.5, 1.0, **options)[2]
    assert (h[:-1] == 1).any()
    results = differentiate(lambda x: lif(x, decay=0.5, v_threshold=1.0, **options), x)
    expected = differentiate(lambda x: run_reference(x, None, 0.5, 1.0, **options), x)
    assert torch.equal(results[0][0], expected[0][0])
    close = dict(atol=1e-2, rtol=2e-2) if dtype.itemsize == 2 else dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results, expected, **close)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_the_reference_in_every_dtype_and_shape(
    shape: tuple[int, ...], dtype: torch.dtype, learned: bool, detach_reset: bool
) -> None:
    wide = membrane_dtype(dtype)
    x = 2 * randn(*shape, seed=1, dtype=dtype)
    v0 = randn(*shape[1:], seed=2, dtype=wide)
    decay, v_threshold = torch.tensor(0.6, dtype=wide), torch.tensor(0.8, dtype=wide)
    inputs = (x, v0, decay, v_threshold) if learned else (x, v0)
    outputs, grads = differentiate(
        lambda x, v0, d=decay, th=v_threshold: lif(
            x, v0, decay=d, v_threshold=th, detach_reset=detach_reset
        ),
        *inputs,
    )
    expected, expected_grads = differentiate(
        lambda x, v0, d=decay, th=v_threshold: run_reference(
            x, v0, d, th, detach_reset=detach_reset
        ),
        *inputs,
    )
    assert [g.dtype for g in grads] == [dtype, wide, wide, wide][: len(inputs)]
    torch.testing.assert_close(outputs, expected, atol=0, rtol=0)
    close = dict(atol=1e-11, rtol=1e-11) if wide == torch.float64 else dict(atol=1e-4, rtol=1e-3)
    for grad, truth in zip(grads[1:], expected_grads[1:], strict=True):
        torch.testing.assert_close(grad, truth, **close)
    # The gradient of a 16-bit input is rounded once, at the end.
    close = dict(atol=1e-2, rtol=2e-2) if dtype.itemsize == 2 else close
    torch.testing.assert_close(grads[0], expected_grads[0], **close)


@pytest.mark.parametrize("needed", ["x", "v0", "decay", "v_threshold"])
def test_each_gradient_alone_is_the_one_among_all(needed: str) -> None:
    tensors = dict(
        x=2 * randn(4, 2, 3, seed=1),
        v0=randn(2, 3, seed=2),
        decay=torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64),
        v_threshold=torch.tensor([0.5, 1.0, 0.7], dtype=torch.float64),
    )

    def gradient(wanted: set[str]) -> Tensor:
        leaves = {k: t.clone().requires_grad_(k in wanted) for k, t in tensors.items()}
        x, v0 = leaves.pop("x"), leaves.pop("v0")
        spikes, v = lif(x, v0, **leaves)
        ((spikes * randn(4, 2, 3, seed=7)).sum() + (v * randn(2, 3, seed=8)).sum()).backward()
        grad = dict(leaves, x=x, v0=v0)[needed].grad
        assert grad is not None
        return grad

    alone = gradient({needed})
    assert alone.abs().sum() > 0
    torch.testing.assert_close(alone, gradient(set(tensors)), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_semantics_in_numpy(options: Options) -> None:
    """Charge, fire and reset as published, for LIF (tau 4) and IF neurons."""
    x, v0 = 2 * randn(9, 4, 3, seed=3).numpy(), randn(4, 3, seed=4).numpy()
    rest, decay_input = options["v_reset"] or 0.0, options["decay_input"]
    rules = [(leaky(4.0, decay_input, rest), 0.75)]
    if not decay_input:
        rules.append((integrate, 1.0))
    for (charge, decay), start in itertools.product(rules, (None, v0)):
        expected, expected_v, h = fire_in_numpy(
            x, charge, 0.8, options["v_reset"], start, options["strict"]
        )
        begin = None if start is None else torch.from_numpy(start)
        spikes, v = lif(torch.from_numpy(x), begin, decay=decay, v_threshold=0.8, **options)
        truth = torch.from_numpy(expected)
        assert 0 < truth.mean() < 1
        assert_spikes_close("spikes", spikes, truth, torch.from_numpy(h), 0.8)
        torch.testing.assert_close(v, torch.from_numpy(expected_v), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_the_exact_threshold_fires_unless_strict(v_reset: float | None, dtype: torch.dtype) -> None:
    # tau 2: h is 0.5, 1 (exactly the threshold), then from the reset 1 - 2**-7 and 1 again.
    x = torch.tensor([1.0, 1.5, 2 - 2**-6, 1 + 2**-7], dtype=dtype)
    spikes, v = lif(x, v_reset=v_reset)
    assert spikes.tolist() == [0, 1, 0, 1]
    assert v.item() == 0
    spikes, v = lif(x[:2], v_reset=v_reset, strict=True)
    assert spikes.tolist() == [0, 0]
    assert v.item() == 1


def test_one_step_fires_at_twice_the_threshold() -> None:
    x = torch.tensor([[1.999, 2.0, 2.001]])
    assert lif(x)[0].tolist() == [[0, 1, 1]]


def test_without_input_scaling_the_published_recurrence_holds() -> None:
    """STMixer: `v <- v/2 + x`; MS-ResNet: `u <- u (1 - s)/4 + x`, strictly above 0.5."""
    x = randn(8, 5, seed=2)
    for decay, threshold, strict in ((0.5, 1.0, False), (0.25, 0.5, True)):
        spikes, _ = lif(x, decay=decay, v_threshold=threshold, decay_input=False, strict=strict)
        u, s = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for t in range(8):
            u = u * (1 - s) * decay + x[t]
            s = (u > threshold if strict else u >= threshold).double()
            assert torch.equal(spikes[t], s), t


@pytest.mark.parametrize("v_reset", RESETS)
def test_none_is_rest(v_reset: float | None) -> None:
    x = randn(4, 3, 2, seed=5)
    rest = torch.full((3, 2), v_reset or 0.0, dtype=torch.float64)
    for ours, theirs in zip(lif(x, v_reset=v_reset), lif(x, rest, v_reset=v_reset), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS[::3], ids=name_of)
def test_any_chunking_is_bitwise_one_pass(options: Options, dtype: torch.dtype) -> None:
    x = 2 * randn(5, 2, 3, seed=6, dtype=dtype)
    spikes, v = lif(x, decay=0.7, **options)
    for lengths in compositions(5):
        state, parts = None, []
        for part in x.split(lengths):
            out, state = lif(part, state, decay=0.7, **options)
            parts.append(out)
        assert torch.equal(torch.cat(parts), spikes), lengths
        assert torch.equal(state, v), lengths


def test_decay_and_threshold_may_be_numbers_scalars_or_channels() -> None:
    x = 2 * randn(4, 2, 3, 5, seed=7)
    spikes, v = lif(x, decay=0.25, v_threshold=0.75)
    for shape in ((), (3,)):
        decay, v_threshold = (torch.full(shape, c, dtype=x.dtype) for c in (0.25, 0.75))
        same, same_v = lif(x, decay=decay, v_threshold=v_threshold)
        assert torch.equal(spikes, same)
        assert torch.equal(v, same_v)


def test_channels_have_their_own_decay_and_threshold() -> None:
    x = 2 * randn(4, 3, 3, 3, seed=8)  # as many samples, rows and channels: axes can be mistaken
    decay = torch.tensor([0.0, 0.5, 0.9], dtype=x.dtype)
    v_threshold = torch.tensor([0.3, 1.0, 0.6], dtype=x.dtype)
    spikes, v = lif(x, decay=decay, v_threshold=v_threshold)
    for c in range(3):
        own, own_v = lif(x[:, :, c], decay=decay[c].item(), v_threshold=v_threshold[c].item())
        assert torch.equal(spikes[:, :, c], own)
        assert torch.equal(v[:, c], own_v)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x.flip(0).permute(2, 0, 1),
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x[..., 0],
    ],
    ids=["transposed", "strided", "permuted", "expanded", "selected"],
)
def test_strides_do_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    x = view(2 * randn(4, 6, 5, seed=9))
    assert not x.is_contiguous()
    cotangent = randn(*x.shape, seed=11)
    results = []
    for layout in (x, x.contiguous()):
        leaf = layout.detach().requires_grad_()
        v0 = randn(*x.shape[:0:-1], seed=10).permute(*reversed(range(x.ndim - 1)))
        spikes, v = lif(leaf, v0 if layout is x else v0.contiguous())
        results.append((spikes, v, *torch.autograd.grad(spikes, leaf, cotangent)))
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_inputs_are_not_changed() -> None:
    x, v0 = 2 * randn(4, 2, 3, seed=1), randn(2, 3, seed=2)
    before = x.clone(), v0.clone()
    spikes, v = lif(x.requires_grad_(), v0)
    (spikes.sum() + v.sum()).backward()
    assert torch.equal(x, before[0])
    assert torch.equal(v0, before[1])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("with_v0", [False, True])
def test_opcheck(learned: bool, with_v0: bool) -> None:
    parameters = (3,) if learned else ()
    args = (
        randn(3, 2, 3, 2, dtype=torch.float32).requires_grad_(),
        randn(2, 3, 2, dtype=torch.float32).requires_grad_() if with_v0 else None,
        torch.full(parameters, 0.5).requires_grad_(learned),
        torch.full(parameters, 1.0).requires_grad_(learned),
        *(None if learned else 0.0, True, with_v0, "sigmoid", 4.0, False),
    )
    torch.library.opcheck(lif_op, args)


@pytest.mark.parametrize("learned", [False, True])
def test_opcheck_of_backward(learned: bool) -> None:
    x, v = randn(3, 2, 3, dtype=torch.bfloat16), randn(2, 3, dtype=torch.float32)
    decay, v_threshold = torch.tensor([0.5, 0.4, 0.3]), torch.tensor(1.0)
    options = (0.0, True, True, "atan", 2.0, False)
    args = (randn(*x.shape, seed=1, dtype=x.dtype), v, x, None, decay, v_threshold, *options)
    torch.library.opcheck(lif_backward_op, (*args, learned))


def test_the_op_declares_that_it_emits_bits() -> None:
    assert OUTPUT_ALPHABETS["spikeformers::lif"]() == (BINARY, None)


class Two(torch.nn.Module):
    """Two neurons with a learned decay and a learned threshold around a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = torch.nn.Parameter(torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
        self.v_threshold = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.weight = torch.nn.Parameter(randn(3, 3, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = lif(x, decay=self.decay, detach_reset=False)
        out, v = lif(spikes @ self.weight, v_threshold=self.v_threshold, v_reset=None, alpha=2.0)
        return out + v


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph_with_equal_gradients(dynamic: bool) -> None:
    torch.compiler.reset()
    model, x = Two(), 2 * randn(4, 2, 3, seed=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for run in (model, compiled):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append(
            (y, *torch.autograd.grad((y * randn(*y.shape)).sum(), [leaf, *model.parameters()]))
        )
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


@pytest.mark.compile
def test_exports_as_one_node_per_neuron() -> None:
    model, x = Two(), 2 * randn(4, 2, 3, seed=1)
    exported = torch.export.export(model, (x,))
    nodes = [n for n in exported.graph.nodes if n.target is torch.ops.spikeformers.lif.default]
    assert len(nodes) == 2
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2), (4, 5, 2, 3), (4, 5, 2, 3, 2)], ids=str)
def test_vmap_over_any_axis_equals_a_loop(shape: tuple[int, ...]) -> None:
    x = 2 * randn(*shape, seed=1)
    for axis in range(len(shape)):
        mapped = torch.vmap(lif, in_dims=axis)(x)
        each = [lif(part) for part in x.unbind(axis)]
        for ours, theirs in zip(mapped, zip(*each, strict=True), strict=True):
            assert torch.equal(ours, torch.stack(theirs)), axis


@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 1), (2, 1)], ids=str)
def test_vmap_with_a_start(in_dims: tuple[int | None, int | None]) -> None:
    step = (2, 3)
    x, v0 = 2 * randn(4, *step, seed=1), randn(*step, seed=2)
    if in_dims[0] is not None:
        x = 2 * randn(*(n for n in (4, *step)[: in_dims[0]]), 5, *(4, *step)[in_dims[0] :], seed=1)
    if in_dims[1] is not None:
        v0 = randn(*step[: in_dims[1]], 5, *step[in_dims[1] :], seed=2)
    mapped = torch.vmap(lif, in_dims=in_dims)(x, v0)
    xs = x.unbind(in_dims[0]) if in_dims[0] is not None else [x] * 5
    starts = v0.unbind(in_dims[1]) if in_dims[1] is not None else [v0] * 5
    each = [lif(*case) for case in zip(xs, starts, strict=True)]
    for ours, theirs in zip(mapped, zip(*each, strict=True), strict=True):
        assert torch.equal(ours, torch.stack(theirs))


@pytest.mark.parametrize("x_dim", [None, 2])
@pytest.mark.parametrize("with_v0", [False, True])
def test_vmap_over_decays_and_thresholds(with_v0: bool, x_dim: int | None) -> None:
    decays = torch.tensor([[0.1, 0.5, 0.9], [0.5, 0.2, 0.0]], dtype=torch.float64)
    thresholds = torch.tensor([0.4, 1.0], dtype=torch.float64)
    x = 2 * randn(*((4, 2, 3) if x_dim is None else (4, 2, 2, 3)), seed=1)
    v0 = randn(2, 3, seed=2) if with_v0 else None

    def run(x: Tensor, decay: Tensor, v_threshold: Tensor) -> tuple[Tensor, Tensor]:
        return lif(x, v0, decay=decay, v_threshold=v_threshold)

    mapped = torch.vmap(run, in_dims=(x_dim, 0, 0))(x, decays, thresholds)
    xs = [x, x] if x_dim is None else x.unbind(x_dim)
    each = [run(*case) for case in zip(xs, decays, thresholds, strict=True)]
    for ours, theirs in zip(mapped, zip(*each, strict=True), strict=True):
        assert torch.equal(ours, torch.stack(theirs))


def test_gradients_flow_through_vmap() -> None:
    x = (2 * randn(5, 4, 2, 3, seed=1)).requires_grad_()
    cotangent = randn(5, 4, 2, 3, seed=2)
    (mapped,) = torch.autograd.grad(torch.vmap(lif)(x)[0], x, cotangent)
    (looped,) = torch.autograd.grad(torch.stack([lif(part)[0] for part in x]), x, cotangent)
    torch.testing.assert_close(mapped, looped, atol=1e-12, rtol=0)


def function_of_one(argument: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return `lif` as a function of one argument, the others closed over, and a point."""
    args = [randn(4, 2, 3), randn(2, 3), torch.tensor(0.5), torch.tensor(1.0)]

    def run(tensor: Tensor) -> Tensor:
        x, v0, decay, v_threshold = (*args[:argument], tensor, *args[argument + 1 :])
        spikes, v = lif(x, v0, decay=decay, v_threshold=v_threshold)
        return spikes.sum() + v.sum()

    return run, args[argument]


ARGUMENTS = pytest.mark.parametrize("argument", range(4), ids=["x", "v0", "decay", "v_threshold"])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
@ARGUMENTS
def test_functional_gradients_are_refused_in_one_sentence(
    argument: int, transform: Callable[..., Any]
) -> None:
    run, point = function_of_one(argument)
    with pytest.raises(InputError, match=r"use torch\.autograd\.grad"):
        transform(run)(point)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch
@ARGUMENTS
def test_forward_mode_is_refused_instead_of_returning_zero(argument: int) -> None:
    run, point = function_of_one(argument)
    with pytest.raises((InputError, NotImplementedError)):
        torch.func.jvp(run, (point,), (torch.ones_like(point),))


def test_functional_gradients_of_a_mapped_function_are_refused() -> None:
    with pytest.raises(InputError, match=r"use torch\.autograd\.grad"):
        torch.func.grad(lambda x: torch.vmap(lambda part: lif(part)[0])(x).sum())(randn(3, 4, 2))


X = torch.zeros(4, 2, 3)
MISUSES: dict[str, tuple[Options, str]] = {
    "integer currents": (dict(x=X.int()), r"x is torch\.int32: .*floating-point"),
    "complex currents": (dict(x=X.cfloat()), r"x is torch\.complex64"),
    "no time axis": (dict(x=torch.tensor(1.0)), r"x has shape \[\]: expected \[T, \.\.\.\]"),
    "no steps": (dict(x=X[:0]), r"x has shape \[0, 2, 3\].*T >= 1"),
    "unknown surrogate": (dict(surrogate="sigmoyd"), r"'sigmoyd' is unknown.*'sigmoid'"),
    "negative decay": (dict(decay=-0.1), r"decay=-0\.1: expected a number in \[0, 1\]"),
    "growing membrane": (dict(decay=1.5), r"decay=1\.5"),
    "decay is not a number": (dict(decay=math.nan), r"decay=nan"),
    "decay per sample": (dict(decay=torch.zeros(2)), r"decay has shape \[2\].*per channel"),
    "decay without channels": (
        dict(x=X[:, :, 0], decay=torch.zeros(2)),
        r"decay has shape \[2\].*shape \[4, 2\]",
    ),
    "threshold per position": (
        dict(v_threshold=torch.ones(3, 1)),
        r"v_threshold has shape \[3, 1\].*axis 2 of x, which has shape \[4, 2, 3\]",
    ),
    "start with time": (dict(v0=X), r"v0 is torch\.float32 \[4, 2, 3\]: expected .* \[2, 3\]"),
    "start of another dtype": (dict(v0=X[0].double()), r"v0 is torch\.float64.*torch\.float32"),
    "16-bit start": (dict(x=X.half(), v0=X[0].half()), r"v0 is torch\.float16.*torch\.float32"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_explained(misuse: str) -> None:
    given, message = MISUSES[misuse]
    arguments = dict(x=X, v0=None, decay=0.5, v_threshold=1.0, surrogate="sigmoid")
    with pytest.raises(InputError, match=message):
        check_lif(**{**arguments, **given})


@pytest.mark.unchecked
@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_explained_where_the_user_calls(misuse: str) -> None:
    given, message = MISUSES[misuse]
    with pytest.raises(InputError, match=message):
        lif(**{"x": X, **given})
