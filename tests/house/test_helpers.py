"""The helpers that other tests lean on do fail when they should."""

import pytest
import torch
from torch import nn

from spikeformers.neurons import LIF
from tests.helpers import assert_lively, assert_spikes_close, compositions, gradients, spikes_of

REFERENCE = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
H = torch.tensor([[0.2, 1.3], [0.7, 1.0 + 1e-7], [1.0 - 1e-7, 0.1]])


def flipped(*places: tuple[int, int]) -> torch.Tensor:
    spikes = REFERENCE.clone()
    for place in places:
        spikes[place] = 1 - spikes[place]
    return spikes


def test_equal_spikes_are_close() -> None:
    assert_spikes_close("equal", REFERENCE, REFERENCE, H, 1.0)


def test_a_flip_far_from_the_threshold_is_named_with_its_first_step() -> None:
    with pytest.raises(AssertionError, match="conv: 1 wrong spikes, first at step 1"):
        assert_spikes_close("conv", flipped((1, 0), (2, 1)), REFERENCE, H, 1.0, eps=1e-6)


def test_flips_at_the_threshold_are_excused_if_they_are_counted() -> None:
    spikes = flipped((1, 1), (2, 0))
    assert_spikes_close("counted", spikes, REFERENCE, H, 1.0, eps=1e-6, flips=2)
    for options in (dict(eps=1e-6), dict(eps=1e-6, flips=1), dict(flips=2)):
        with pytest.raises(AssertionError, match="conv"):
            assert_spikes_close("conv", spikes, REFERENCE, H, 1.0, **options)


def test_other_shapes_are_not_close() -> None:
    with pytest.raises(AssertionError, match="conv"):
        assert_spikes_close("conv", REFERENCE[:1], REFERENCE, H, 1.0)


def test_constant_neurons_and_missing_gradients_are_noticed() -> None:
    model = nn.Sequential(LIF())
    with pytest.raises(AssertionError, match="constant"):
        assert_lively(spikes_of(model, lambda: model(torch.zeros(2, 3))))
    with pytest.raises(AssertionError, match="no gradient reaches"):
        gradients(nn.Linear(2, 2))


def test_every_cut_of_four_steps_is_listed_once() -> None:
    cuts = compositions(4)
    assert len(set(cuts)) == len(cuts) == 8
    assert all(sum(cut) == 4 for cut in cuts)
