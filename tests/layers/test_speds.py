"""SPEDS: what it adds up, how it shrinks maps, and what it refuses."""

import pytest
import torch
from torch import nn

from spikeformers.errors import InputError
from spikeformers.layers import SPEDS, event_stem, image_stem, small_image_stem
from spikeformers.neurons import LIF
from tests.helpers import assert_lively, assert_same, enliven, randn, random_spikes, spikes_of


def test_spikes_of_both_ways_add() -> None:
    speds = enliven(SPEDS((4, 6, 8), (2, 1))).eval()
    x = random_spikes(3, 2, 4, 7, 9, seed=1)
    fired = spikes_of(speds, lambda: speds(x))
    assert_lively(fired)
    assert set(fired) == {"body.fn.0.neuron", "body.fn.1.neuron", "body.shortcut.neuron"}
    expected = fired["body.fn.1.neuron"] + fired["body.shortcut.neuron"]
    assert torch.equal(speds(x), expected)
    assert set(expected.unique().tolist()) == {0.0, 1.0, 2.0}


def test_currents_are_pooled_before_the_neuron() -> None:
    speds = enliven(SPEDS((4, 6, 8), (1, 2))).eval()
    x = random_spikes(3, 2, 4, 7, 9, seed=1)
    spikes = spikes_of(speds, lambda: speds(x))
    first, second = speds.body.fn
    current = second.conv(first(x))
    pooled = torch.stack([nn.functional.max_pool2d(step, 3, 2, 1) for step in current])
    assert torch.equal(spikes["body.fn.1.neuron"], LIF()(pooled))


def test_the_shortcut_starts_behind_the_leading_convolutions() -> None:
    speds = enliven(SPEDS((3, 4, 5, 6), (1, 2, 2), lead=2)).eval()
    x = randn(3, 2, 3, 8, 8)
    spikes = speds.lead(x)
    assert spikes.shape == (3, 2, 5, 4, 4)
    assert_same(speds(x), speds.body.fn(spikes) + speds.body.shortcut(spikes))


@pytest.mark.parametrize(
    ("stem", "stride"), [(image_stem, 4), (small_image_stem, 1), (event_stem, 8)]
)
@pytest.mark.parametrize("size", [(32, 48), (37, 61), (8, 9)], ids=str)
def test_stems_have_their_stride(stem, stride: int, size: tuple[int, int]) -> None:
    speds = stem(2, 16)
    assert speds.stride == stride
    height, width = (-(-side // stride) for side in size)
    assert speds(torch.zeros(2, 1, 2, *size)).shape == (2, 1, 16, height, width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dims=(3, 8), strides=(2, 1)), r"dims=\(3, 8\): expected 3 positive widths"),
        (dict(dims=(3, 0, 8), strides=(2, 1)), r"dims=\(3, 0, 8\): expected 3 positive"),
        (dict(dims=(3, 8, 8), strides=(4, 1)), r"strides=\(4, 1\): expected 1 or 2"),
        (dict(dims=(3, 8, 8), strides=(2, 1), lead=2), "lead=2: expected 0 to 1"),
        (dict(dims=(3, 8, 8), strides=(2, 1), lead=-1), "lead=-1: expected 0 to 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SPEDS(**arguments)


def test_too_narrow_stems_are_refused() -> None:
    with pytest.raises(InputError, match=r"dims=\(2, 0, 1, 2, 4\)"):
        event_stem(2, 4)
