"""Recomputation changes memory, never a number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.layers import Chain, ConvBN, RepConv, Trunk, recompute
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
