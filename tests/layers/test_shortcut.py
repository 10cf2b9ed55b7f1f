"""Shortcuts: where the sum stands, and which random samples it drops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers import Branch, Chain, Linear, Residual, Trunk, drop_path, sew, vanilla
from spikeformers.neurons import IF, LIF
from tests.helpers import assert_same, enliven, randn, random_spikes

X = 2 * randn(4, 6, 3, seed=1)


class Ones(nn.Module):
    """A body whose output is one everywhere, so that a mask shows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def trunk(*rates: float, blocks: int = 2) -> Trunk:
    parts = [dict(a=Branch(LIF(), Ones()), b=Branch(LIF(), Ones())) for _ in range(blocks)]
    return Trunk(parts, list(rates)) if rates else Trunk(parts)


def test_a_trunk_adds_each_branch_to_the_membrane_in_order() -> None:
    model = enliven(
        Trunk([dict(a=Branch(LIF(), Linear(3, 3)), b=Branch(LIF(), Linear(3, 3))) for _ in "12"])
    )
    x = X
    for block in model:
        for name in ("a", "b"):
            x = x + block[name].fn(block[name].neuron(x))
    assert_same(model(X), x)
    assert [name for name, _ in model.named_parameters()][:2] == ["0.a.fn.weight", "0.a.fn.bias"]


def test_one_mask_per_sample_is_shared_by_all_steps() -> None:
    torch.manual_seed(0)
    x = 1 + randn(5, 64, 3, 2, seed=1).abs()
    factors = drop_path(x, 0.25) / x
    assert_same(factors, factors[:1, :, :1, :1].expand_as(factors))
    values = factors[0, :, 0, 0]
    assert ((values == 0) | ((values - 4 / 3).abs() < 1e-12)).all()
    assert 0 < (values == 0).sum() < 64


def test_a_share_of_samples_equal_to_the_rate_is_dropped() -> None:
    torch.manual_seed(0)
    y = drop_path(torch.ones(1, 20000, 1), 0.3)
    assert abs((y == 0).float().mean() - 0.3) < 0.02
    assert abs(y.mean() - 1) < 0.02


def test_the_rates_belong_to_blocks_and_only_to_training() -> None:
    torch.manual_seed(0)
    model, x = trunk(0.0, 0.5), torch.zeros(3, 64, 2)
    added = model(x)
    assert set(added.unique().tolist()) == {2.0, 4.0, 6.0}, "2 for the first block, 0 to 4 after"
    assert torch.equal(model.eval()(x), torch.full_like(x, 4.0))
    assert torch.equal(trunk()(x), torch.full_like(x, 4.0))


def test_rates_may_belong_to_branches() -> None:
    torch.manual_seed(0)
    assert trunk(0.0, 0.5).drop_path_rates == [0.0, 0.0, 0.5, 0.5]
    model, x = trunk(0.0, 0.5, 0.0, 0.0), torch.zeros(3, 64, 2)
    assert model.drop_path_rates == [0.0, 0.5, 0.0, 0.0]
    assert set(model(x).unique().tolist()) == {3.0, 5.0}, "3 without the second branch"


@pytest.mark.parametrize(
    "rates", [1.0, -0.1, math.nan, [0.1], [0.1, 0.2, 0.3], [0.1, 1.0]], ids=str
)
def test_impossible_rates_are_refused(rates: Any) -> None:
    with pytest.raises(InputError, match=r"expected 2 probabilities in \[0, 1\)"):
        Trunk([dict(a=Branch(LIF(), Ones())), dict(a=Branch(LIF(), Ones()))], rates)


@pytest.mark.parametrize(
    ("connect", "join"),
    [
        ("add", lambda x, y: x + y),
        ("and", lambda x, y: ((x == 1) & (y == 1)).double()),
        ("iand", lambda x, y: ((x == 1) & (y == 0)).double()),
    ],
)
def test_sew_joins_spikes_with_spikes(connect: str, join: Any) -> None:
    body = enliven(Chain(Linear(3, 3), IF()))
    x = random_spikes(4, 16, 3, seed=1)
    y = body(x)
    assert torch.equal(sew(body, connect)(x), join(x, y))
    assert len((2 * x + y).unique()) == 4, "every pair of spikes occurs"


def test_sew_refuses_other_words() -> None:
    with pytest.raises(InputError, match="connect='xor': expected 'add', 'and' or 'iand'"):
        sew(nn.Identity(), "xor")


def test_vanilla_fires_on_the_sum() -> None:
    body, x = enliven(Linear(3, 3)), random_spikes(4, 6, 3, seed=1)
    assert torch.equal(vanilla(body, LIF())(x), LIF()(x + body(x)))
    assert set(vanilla(body, LIF())(x).unique().tolist()) == {0.0, 1.0}


def test_a_shortcut_fits_the_input_to_a_body_that_changes_the_width() -> None:
    body, around = enliven(Linear(3, 5), seed=1), enliven(Linear(3, 5), seed=2)
    x = random_spikes(4, 6, 3, seed=1)
    assert torch.equal(Residual(body, around)(x), around(x) + body(x))
    assert torch.equal(vanilla(body, LIF(), around)(x), LIF()(around(x) + body(x)))
    fires, joins = Chain(body, LIF()), Chain(around, LIF())
    assert torch.equal(sew(fires, "iand", joins)(x), joins(x) * (1 - fires(x)))
    assert torch.equal(sew(fires, "add", joins)(x), joins(x) + fires(x))


def test_without_a_shortcut_a_body_is_added_to_its_input() -> None:
    body = enliven(Linear(3, 3))
    assert torch.equal(Residual(body)(X), X + body(X))


def test_a_chain_names_its_parts_and_runs_them_in_order() -> None:
    model = Chain(nn.Identity(), neuron=LIF(), last=nn.Flatten(2))
    assert [name for name, _ in model.named_children()] == ["0", "neuron", "last"]
    assert torch.equal(model(X[..., None]), LIF()(X))
