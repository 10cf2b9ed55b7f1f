"""The op `ilif` against its reference, against numpy and against autograd."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, ilif
from spikeformers.ops.ilif import reference
from spikeformers.ops.ilif.op import ilif_backward_op, ilif_op
from spikeformers.types import BINARY, Alphabet
from tests.helpers import compositions, randn

Options = dict[str, Any]

SHAPES = [(5,), (4, 3), (3, 2, 3, 7), (1, 2, 3, 3, 2)]
OPTIONS: list[Options] = [
    dict(levels=levels, decay=decay, rounding=rounding, v_threshold=v_threshold)
    for levels, decay, rounding, v_threshold in itertools.product(
        [1, 4], [0.0, 0.25, 1.0], ["half_even", "half_up"], [1.0, 0.6]
    )
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items())
)
each_rounding = pytest.mark.parametrize("rounding", ["half_even", "half_up"])


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def currents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Below zero, inside and above the levels, with many exact halves among them."""
    x = 2 + 3 * randn(*shape, seed=seed)
    return torch.where(randn(*shape, seed=seed + 100) > 0.5, x.mul(2).round() / 2, x).to(dtype)


def differentiate(
    run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return outputs and gradients for fixed random cotangents on integers and membrane."""
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    outputs = run(*inputs)[:2]
    cotangents = [randn(*y.shape, seed=90 + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    return outputs, torch.autograd.grad(outputs, inputs, cotangents)


@each_option
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_op_equals_the_reference_with_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, options: Options
) -> None:
    x, v0 = currents(*shape, dtype=dtype), randn(*shape[1:], seed=2, dtype=membrane_dtype(dtype))
    for start in ([], [v0]):
        outputs, grads = differentiate(lambda x, v=None: ilif(x, v, **options), x, *start)
        expected, expected_grads = differentiate(
            lambda x, v=None: reference.ilif_forward(x, v, *options.values()), x, *start
        )
        assert [y.dtype for y in outputs] == [dtype, membrane_dtype(dtype)]
        torch.testing.assert_close(outputs, expected, atol=0, rtol=0)
        assert [g.dtype for g in grads] == [dtype, membrane_dtype(dtype)][: len(grads)]
        close = dict(atol=1e-2, rtol=2e-2) if dtype.itemsize == 2 else dict(atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grads, expected_grads, **close)


@each_option
def test_semantics_in_numpy(options: Options) -> None:
    x, v0 = currents(6, 50).numpy(), randn(50, seed=3).numpy()
    for start in (None, v0):
        v, expected = np.zeros(50) if start is None else start, np.zeros_like(x)
        for t, current in enumerate(x):
            u = options["decay"] * v + current
            clipped = np.clip(u / options["v_threshold"], 0, options["levels"])
            is_even = options["rounding"] == "half_even"
            expected[t] = np.rint(clipped) if is_even else np.floor(clipped + 0.5)
            v = u - options["v_threshold"] * expected[t]
        integers, remainder = ilif(
            torch.from_numpy(x), None if start is None else torch.from_numpy(start), **options
        )
        assert torch.equal(integers, torch.from_numpy(expected))
        torch.testing.assert_close(remainder, torch.from_numpy(v), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_halves_go_where_the_rounding_says(dtype: torch.dtype) -> None:
    halves = torch.tensor([[0.5, 1.5, 2.5, 3.5, 4.5]], dtype=dtype)
    assert ilif(halves)[0].tolist() == [[0, 2, 2, 4, 4]]
    assert ilif(halves, rounding="half_up")[0].tolist() == [[1, 2, 3, 4, 4]]


@each_rounding
def test_the_gradient_passes_inside_the_levels(rounding: str) -> None:
    """The ends belong to the interval where halves go to even numbers, and not where they go up."""
    x = torch.tensor([[-0.1, 0.0, 0.1, 2.0, 3.9, 4.0, 4.1]], requires_grad=True)
    (grad,) = torch.autograd.grad(ilif(x, rounding=rounding)[0].sum(), x)
    ends = 1 if rounding == "half_even" else 0
    assert grad.tolist() == [[0, ends, 1, 1, 1, ends, 0]]


@each_rounding
def test_the_gradient_through_time_is_that_of_the_decay(rounding: str) -> None:
    """The reset is detached, so `du[t] / dx[0] = decay ** t` whatever was emitted."""
    x = (0.5 + randn(4, 6, seed=1).abs()).requires_grad_()  # inside the levels at every step
    integers, v = ilif(x, decay=0.5, levels=9, rounding=rounding)
    for t in range(4):
        (grad,) = torch.autograd.grad(integers[t].sum(), x, retain_graph=True)
        inside = reference.passes(reference_membranes(x, rounding)[t], 9, rounding)
        assert torch.equal(grad[0], inside * 0.5**t)
    (grad,) = torch.autograd.grad(v.sum(), x)
    assert torch.equal(grad[:, 0], torch.tensor([0.125, 0.25, 0.5, 1.0], dtype=x.dtype))


def reference_membranes(x: Tensor, rounding: str) -> list[Tensor]:
    """Return `u[t]` for decay 0.5 and 9 levels, from what every prefix leaves over."""
    membranes = []
    for t in range(len(x)):
        integers, v = ilif(x[: t + 1].detach(), decay=0.5, levels=9, rounding=rounding)
        membranes.append(v + integers[-1])
    return membranes


@each_option
def test_any_chunking_is_bitwise_one_pass(options: Options) -> None:
    x = currents(5, 2, 3)
    integers, v = ilif(x, **options)
    for lengths in compositions(5):
        state, parts = None, []
        for part in x.split(lengths):
            out, state = ilif(part, state, **options)
            parts.append(out)
        assert torch.equal(torch.cat(parts), integers), lengths
        assert torch.equal(state, v), lengths


def test_without_decay_every_step_is_alone() -> None:
    x = currents(5, 7)
    assert torch.equal(ilif(x, decay=0.0)[0], x.clamp(0, 4).round())


def test_strides_do_not_matter_and_inputs_stay() -> None:
    base = currents(4, 6, 5)
    for view in (base.transpose(0, 1), base[:, ::2], base[:1].expand(4, -1, -1)):
        before, results = view.clone(), []
        for layout in (view, view.contiguous()):
            leaf = layout.detach().requires_grad_()
            integers, v = ilif(leaf)
            results.append((integers, v, *torch.autograd.grad(integers.sum() + v.sum(), leaf)))
        torch.testing.assert_close(*results, atol=0, rtol=0)
        assert torch.equal(view, before)


@pytest.mark.parametrize("with_v0", [False, True])
@each_rounding
def test_opcheck(rounding: str, with_v0: bool) -> None:
    x = currents(3, 2, 3, dtype=torch.float32).requires_grad_()
    v0 = randn(2, 3, dtype=torch.float32).requires_grad_() if with_v0 else None
    torch.library.opcheck(ilif_op, (x, v0, 4, 0.25, rounding, 0.5))


def test_opcheck_of_backward() -> None:
    grad_v, passing = randn(2, 3, dtype=torch.float32), randn(3, 2, 3) > 0
    torch.library.opcheck(
        ilif_backward_op, (randn(3, 2, 3, dtype=torch.bfloat16), grad_v, passing, 0.25, 0.5)
    )


def test_the_op_declares_that_it_emits_integers() -> None:
    rule = OUTPUT_ALPHABETS["spikeformers::ilif"]
    assert rule(None, None, 8, 0.25, "half_even", 1.0) == (Alphabet(0, 8), None, BINARY)


class Two(torch.nn.Module):
    """Two neurons around a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(randn(3, 3, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        integers, _ = ilif(x)
        out, v = ilif(integers @ self.weight, decay=0.5, levels=2, rounding="half_up")
        return out + v


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph_with_equal_gradients(dynamic: bool) -> None:
    torch.compiler.reset()
    model, x, results = Two(), currents(4, 2, 3), []
    for run in (
        model,
        torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic),
    ):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append((y, *torch.autograd.grad((y * randn(*y.shape)).sum(), [leaf, model.weight])))
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)


@pytest.mark.compile
def test_exports_as_one_node_per_neuron() -> None:
    model, x = Two(), currents(4, 2, 3)
    exported = torch.export.export(model, (x,))
    nodes = [n for n in exported.graph.nodes if n.target is torch.ops.spikeformers.ilif.default]
    assert len(nodes) == 2
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 1), (2, 1)], ids=str)
def test_vmap_equals_a_loop(in_dims: tuple[int | None, int | None]) -> None:
    def mapped(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor if dim is None else torch.stack([tensor + i for i in range(5)], dim)

    x, v0 = mapped(currents(4, 2, 3), in_dims[0]), mapped(randn(2, 3, seed=2), in_dims[1])
    together = torch.vmap(ilif, in_dims=in_dims)(x, v0)
    xs = [x] * 5 if in_dims[0] is None else x.unbind(in_dims[0])
    starts = [v0] * 5 if in_dims[1] is None else v0.unbind(in_dims[1])
    each = [ilif(*case) for case in zip(xs, starts, strict=True)]
    for ours, theirs in zip(together, zip(*each, strict=True), strict=True):
        assert torch.equal(ours, torch.stack(theirs))


def test_gradients_flow_through_vmap() -> None:
    x, cotangent = currents(5, 4, 2, 3).requires_grad_(), randn(5, 4, 2, 3, seed=2)
    (mapped,) = torch.autograd.grad(torch.vmap(ilif)(x)[0], x, cotangent)
    (looped,) = torch.autograd.grad(torch.stack([ilif(part)[0] for part in x]), x, cotangent)
    torch.testing.assert_close(mapped, looped, atol=1e-12, rtol=0)


def test_functional_gradients_are_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"use torch\.autograd\.grad"):
        torch.func.grad(lambda x: ilif(x)[0].sum())(currents(4, 2))


X = torch.zeros(4, 2, 3)
MISUSES: dict[str, tuple[Options, str]] = {
    "integer currents": (dict(x=X.int()), r"x is torch\.int32: .*floating-point"),
    "no steps": (dict(x=X[:0]), r"x has shape \[0, 2, 3\].*T >= 1"),
    "start with time": (dict(v0=X), r"v0 is torch\.float32 \[4, 2, 3\]: expected .* \[2, 3\]"),
    "no levels": (dict(levels=0), r"levels=0: expected"),
    "half levels": (dict(levels=2.5), r"levels=2\.5: expected"),
    "growing membrane": (dict(decay=1.5), r"decay=1\.5: expected a number in \[0, 1\]"),
    "no threshold": (dict(v_threshold=0.0), r"v_threshold=0\.0: expected a positive number"),
    "unknown rounding": (dict(rounding="down"), r"rounding='down' is unknown"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_explained(misuse: str) -> None:
    given, message = MISUSES[misuse]
    with pytest.raises(InputError, match=message):
        ilif(**{"x": X, **given})
