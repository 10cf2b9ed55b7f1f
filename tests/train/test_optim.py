"""Schedule, weight decay groups, layer decay, LAMB, SGD."""

import dataclasses

import pytest
import torch

from spikeformers.errors import ConfigError
from spikeformers.models import create_model
from spikeformers.train import load_recipe
from spikeformers.train.optim import (
    learning_rate_at,
    make_optimizer,
    peak_learning_rate,
    set_learning_rate,
)
from spikeformers.train.recipe import TrainSection


def settings(**changes: object) -> TrainSection:
    plain = dict(epochs=10, warmup_epochs=1, learning_rate=2.0, weight_decay=0.1)
    return dataclasses.replace(load_recipe("digits").train, **(plain | changes))


def test_warm_up_then_half_cosine_to_zero() -> None:
    rates = [learning_rate_at(step, 10, settings()) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-2


def test_the_cosine_ends_at_the_final_rate() -> None:
    ended = settings(final_learning_rate=0.5, warmup_epochs=0)
    rates = [learning_rate_at(step, 1000, ended) for step in range(10_000)]
    assert rates[0] == 2.0 and rates[-1] == pytest.approx(0.5, abs=1e-6) and min(rates) > 0.5


def test_the_rate_follows_the_batch_size_where_a_reference_is_given() -> None:
    scaled = settings(reference_batch=256, batch_size=1024, final_learning_rate=0.1)
    assert peak_learning_rate(scaled) == 8.0
    assert learning_rate_at(99_999, 10_000, scaled) == pytest.approx(0.4, abs=1e-6)
    assert peak_learning_rate(settings(batch_size=1024)) == 2.0


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_beta2_and_epsilon_are_the_optimisers_own_unless_they_are_given(optimizer: str) -> None:
    model = create_model("meta_spikeformer_tiny")
    own, given = (
        make_optimizer(model, settings(optimizer=optimizer, **changes)).param_groups[0]
        for changes in ({}, dict(beta2=0.95, epsilon=1e-4))
    )
    assert tuple(own["betas"]) == (0.9, 0.999) and own["eps"] <= 1e-6
    assert tuple(given["betas"]) == (0.9, 0.95) and given["eps"] == 1e-4


def test_norms_biases_and_neurons_do_not_decay() -> None:
    model = create_model("meta_spikeformer_tiny", neuron="PLIF")
    decayed, spared = make_optimizer(model, settings()).param_groups
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in spared["params"]} == {0, 1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_each_layer_learns_slower_than_the_one_above() -> None:
    model = create_model("meta_spikeformer_tiny")
    optimizer = make_optimizer(model, settings(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert len(rates) == len(rate_of)
    assert {rates[name] for name in rates if name.startswith("head.")} == {1.0}
    # Five stages of an embedding and one block each lie below the head.
    assert rates["stages.4.embed.conv.conv.weight"] == 0.25
    assert rates["stages.0.embed.conv.conv.weight"] == 0.5**10


def test_sgd_keeps_a_share_of_its_last_step() -> None:
    """`b <- m b + g + w p`, `p <- p - r b`, with rate r, momentum m and weight decay w."""
    model = create_model("meta_spikeformer_tiny")
    optimizer = make_optimizer(model, settings(optimizer="sgd", momentum=0.5, learning_rate=0.1))
    set_learning_rate(optimizer, 0.1)
    weight = model.head.linear.weight
    expected, kept = weight.detach().clone(), torch.zeros_like(weight)
    for gradient in (1.0, -2.0):
        weight.grad = torch.full_like(weight, gradient)
        kept = 0.5 * kept + weight.grad + 0.1 * expected
        expected = expected - 0.1 * kept
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_optimisers_learn(name: str) -> None:
    torch.manual_seed(0)
    model = create_model("meta_spikeformer_tiny", norm_gain=2.0)
    optimizer = make_optimizer(model, settings(optimizer=name, learning_rate=0.01))
    set_learning_rate(optimizer, 0.01)
    x, labels = torch.randn(2, 8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model.readout(model(x)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_lamb_refuses_sharded_weights() -> None:
    model = create_model("meta_spikeformer_tiny")
    with pytest.raises(ConfigError, match="choose adamw"):
        make_optimizer(model, settings(optimizer="lamb", sharded=True))
