"""Recomputation changes memory, never a number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import (
    BatchNorm,
    Branch,
    Chain,
    ConvBN,
    RepConv,
    ReversibleTrunk,
    Trunk,
    TwiceCountingTrunk,
    recompute,
)
from spikeformers.layers.recompute import take_turns
from spikeformers.neurons import LIF
from tests.helpers import (
    assert_same,
    enliven,
    gradients,
    randn,
    statistics,
)

Run = Callable[[nn.Module, Tensor], Tensor]


def plainly(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def body() -> nn.Module:
    """Norms whose statistics reach the output within the same pass (the borders of `RepConv`)."""
    return enliven(
        Chain(
            neuron=LIF(), conv=RepConv(3, 4), again=LIF(), rep=RepConv(4, 2), last=ConvBN(2, 2, 1)
        )
    )


def train_twice(module: nn.Module, run: Run, x: Tensor) -> tuple[Any, ...]:
    """Two forward passes on different inputs before one backward pass, then one more step."""
    leaf = x.clone().requires_grad_()
    outputs = [run(module, leaf), run(module, 0.5 * leaf)]
    sum((y * randn(*y.shape, seed=5)).sum() for y in outputs).backward()
    outputs.append(run(module, leaf**2))
    outputs[-1].square().sum().backward()
    return outputs, leaf.grad, gradients(module), statistics(module)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_statistics_and_borders_equal_the_plain_run(training: bool) -> None:
    x = 3 * randn(3, 2, 3, 5, 4, seed=1)
    plain, again = (train_twice(body().train(training), run, x) for run in (plainly, recompute))
    for actual, expected in zip(again, plain, strict=True):
        assert_same(actual, expected)


def test_momentum_and_modes_are_back_after_the_second_run() -> None:
    module = body()
    module.rep.norm.momentum = None
    module.rep.inner_norm.momentum = 0.7
    before = [getattr(m, "momentum", "none") for m in module.modules()]
    recompute(module, randn(3, 2, 3, 5, 4).requires_grad_()).sum().backward()
    assert [getattr(m, "momentum", "none") for m in module.modules()] == before


def test_random_masks_are_the_same_in_both_runs() -> None:
    module = Chain(nn.Dropout(0.5), ConvBN(3, 3, 1)).double()
    x, results = randn(3, 2, 3, 5, 4), []
    for run in (plainly, recompute):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(run(module, leaf).square().sum(), leaf))
    assert_same(*results)


def test_only_the_input_is_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x, module = randn(3, 2, 3, 5, 4).requires_grad_(), body()
    sizes = []
    for run in (plainly, recompute):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(module, x)
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 10


def test_without_gradients_it_is_the_plain_call() -> None:
    module, x = body(), randn(3, 2, 3, 5, 4)
    reference = body()
    with torch.no_grad():
        assert torch.equal(recompute(module, x), reference(x))
    assert_same(statistics(module), statistics(reference))


def test_a_model_with_recomputing_trunks_trains_the_same() -> None:
    x, results = randn(2, 2, 3, 32, 48, seed=1), []
    for recomputes in (False, True):
        model = enliven(sf.create_model("meta_spikeformer_tiny"))
        trunks = [m for m in model.modules() if isinstance(m, Trunk)]
        assert len(trunks) == 5
        for trunk in trunks:
            trunk.recomputes = recomputes
        results.append(train_twice(model, plainly, x))
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


def two_streams(depth: int = 2, trunk: type[ReversibleTrunk] = ReversibleTrunk) -> ReversibleTrunk:
    return enliven(
        trunk(
            dict(f=Branch(LIF(), RepConv(2, 2)), g=Branch(LIF(), ConvBN(2, 2, 3)))
            for _ in range(depth)
        )
    )


def kept_by(module: nn.Module, x: Tensor) -> int:
    """Return how many bytes autograd keeps for the backward pass of `module`."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    # Alive until here: a freed storage would lend its address to the next one.
    del y
    return sum(kept.values())


def summed_plainly(trunk: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(trunk, ReversibleTrunk)
    return take_turns(list(trunk.parts()), x, torch.float64).to(x.dtype)


@pytest.mark.parametrize("training", [True, False])
def test_reversible_gradients_statistics_and_borders_equal_the_plain_run(training: bool) -> None:
    x = 3 * randn(3, 2, 4, 5, 4, seed=1)
    plain, reverse = (
        train_twice(two_streams().train(training), run, x) for run in (summed_plainly, plainly)
    )
    for actual, expected in zip(reverse, plain, strict=True):
        assert_same(actual, expected)


def test_reversible_memory_is_constant_in_depth() -> None:
    x = randn(3, 2, 4, 5, 4).requires_grad_()
    output = x.numel() * x.element_size()
    assert {kept_by(two_streams(depth), x) for depth in (1, 2, 8)} == {output}
    plain = [kept_by(two_streams(depth).eval(), x) for depth in (1, 8)]
    assert plain[0] > 4 * output and plain[1] > 6 * plain[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_branch_sees_the_same_numbers_in_both_runs(dtype: torch.dtype) -> None:
    """Streams of very different size: their sum in `dtype` would lose digits of the branch."""
    trunk, seen = two_streams(6).to(dtype), []
    for branch in trunk.parts():
        branch.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    size = torch.tensor([1000.0, 1000.0, 1.0, 1.0]).view(4, 1, 1)
    x = (size * randn(3, 2, 4, 5, 4)).to(dtype).requires_grad_()
    trunk(x).sum().backward()
    assert len(seen) == 24
    for first, second in zip(seen[:12], reversed(seen[12:]), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("outlives", [False, True])
def test_reversible_under_autocast_equals_the_plain_run(outlives: bool) -> None:
    """The backward pass casts as the forward pass did, inside its context and after it."""
    x, results = randn(3, 2, 4, 5, 4).float(), []
    for run in (summed_plainly, plainly):
        trunk, leaf = two_streams().float(), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = run(trunk, leaf)
            if not outlives:
                y.square().sum().backward()
        if outlives:
            y.square().sum().backward()
        results.append((y, leaf.grad, gradients(trunk)))
    # The plain run sums gradients in double precision as well.
    torch.testing.assert_close(*results)


def test_reversible_with_frozen_and_shared_parameters_and_two_backward_passes() -> None:
    results = []
    for run in (summed_plainly, plainly):
        trunk = two_streams(3)
        trunk[0]["f"].requires_grad_(False)
        trunk[2]["g"].fn = trunk[1]["g"].fn
        y = run(trunk, randn(3, 2, 4, 5, 4))
        y.square().sum().backward(retain_graph=True)
        y.sum().backward()
        results.append({n: p.grad for n, p in trunk.named_parameters() if p.requires_grad})
    assert results[0] and None not in results[0].values()
    assert_same(*results)


def test_a_trunk_that_counts_twice_moves_as_after_two_updates() -> None:
    def block() -> dict[str, Branch]:
        return dict(f=Branch(LIF(), ConvBN(2, 2, 3)), g=Branch(LIF(), ConvBN(2, 2, 1)))

    once, twice = enliven(ReversibleTrunk([block()])), enliven(TwiceCountingTrunk([block()]))
    x = randn(3, 2, 4, 5, 4, seed=1)
    twice(x)
    for _ in range(2):
        once(x)
    moved = {k: v for k, v in statistics(twice).items() if "running" in k}
    assert_same(moved, {k: v for k, v in statistics(once).items() if "running" in k})
    assert {m.momentum for m in twice.modules() if isinstance(m, BatchNorm)} == {1 - 0.9**2}


def test_a_reversible_trunk_streams_in_training_mode_too() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.7 * x

    trunk = ReversibleTrunk([dict(f=Branch(LIF(), Scale()), g=Branch(LIF(), Scale()))])
    x = 3 * randn(4, 2, 4, 3, 3)
    first, state = sf.advance(trunk, x[:1])
    rest, _ = sf.advance(trunk, x[1:], state)
    assert trunk.training
    assert_same(torch.cat([first, rest]), trunk(x))


def test_what_cannot_be_reversed_is_refused() -> None:
    def branch(*parts: nn.Module) -> Branch:
        return Branch(LIF(), Chain(*parts))

    with pytest.raises(InputError, match="expected two branches"):
        ReversibleTrunk([dict(f=branch())])
    with pytest.raises(InputError, match="dropout"):
        ReversibleTrunk([dict(f=branch(nn.Dropout(0.5)), g=branch())])
    with pytest.raises(InputError, match="3 channels"):
        two_streams()(randn(2, 1, 3, 4, 4))
