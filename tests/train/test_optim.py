"""Schedule and weight decay groups."""

import pytest

from spikeformers.models import create_model
from spikeformers.train.optim import adamw, learning_rate_at


def test_warm_up_then_half_cosine_to_zero() -> None:
    rates = [learning_rate_at(step, 100, 10, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-2


def test_norms_biases_and_neurons_do_not_decay() -> None:
    model = create_model("meta_spikeformer_tiny", neuron="PLIF")
    decayed, spared = adamw(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in spared["params"]} == {0, 1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
