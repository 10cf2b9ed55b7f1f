"""Replayed potentials are those of the run that they replay, and spikes are counted once."""

from functools import partial

import pytest
import torch

from spikeformers.analysis.firing import count_spikes, potentials, record_spikes
from spikeformers.models import create_model
from spikeformers.neurons import IF, LIF, PLIF, AcrossBatch, LearnedThresholdLIF, Neuron
from tests.helpers import assert_same, enliven, randn


class PerChannel(LIF):
    @property
    def threshold(self):
        return torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


class Integer(LIF):
    """A neuron of its own."""

    def fire(self, x, v0=None):
        v = x.cumsum(0) + (0 if v0 is None else v0)
        return v.round().clamp(0, 4), v[-1]


@pytest.mark.parametrize(
    "neuron",
    [
        LIF,
        IF,
        PLIF,
        LearnedThresholdLIF,
        PerChannel,
        partial(LIF, tau=3.0, v_threshold=0.7, v_reset=-0.2),
        partial(LIF, v_reset=None, decay_input=False, strict=True),
    ],
)
def test_the_potential_meets_the_threshold_where_it_fires(neuron):
    neuron, x = neuron(), 2 * randn(5, 2, 3, 4)
    spikes, v = neuron.fire(x)
    found = potentials(neuron, x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(found.before >= found.threshold, spikes.bool())
    assert_same(found.after[-1], v)
    reset = found.before - found.threshold if neuron.v_reset is None else neuron.v_reset
    assert_same(found.after, torch.where(spikes.bool(), reset, found.before))
    assert not found.before.requires_grad


@pytest.mark.parametrize("neuron", [Integer(), AcrossBatch(LIF())])
def test_of_other_neurons_only_the_returned_membrane_is_known(neuron: Neuron):
    x = randn(4, 1, 3)
    found = potentials(neuron, x)
    assert found.before is None and found.threshold is None
    assert found.after.shape == x.shape
    assert_same(found.after[2], neuron.fire(x[:3])[1])


def test_the_mean_rate_is_weighed_by_neurons():
    model = enliven(create_model("meta_spikeformer_tiny")).eval()
    x = randn(3, 2, 3, 32, 32)
    with torch.no_grad(), record_spikes(model) as spikes:
        model(x)
    with torch.no_grad(), count_spikes(model) as counts:
        model(x)
        model(x)
    every = torch.cat([s.flatten() for s in spikes.values()])
    assert len({s.numel() for s in spikes.values()}) > 1
    assert counts.tolist() == [2 * every.sum().item(), 2 * every.numel()]
