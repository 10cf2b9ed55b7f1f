"""MS-ResNet: its start at the identity, its firing rule, its dropout."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import spikeformers as sf
from spikeformers.errors import ConfigError
from spikeformers.layers import BatchNorm
from spikeformers.models.ms_resnet import (
    MSLIF,
    FiringHead,
    pooled_shortcut,
    small_kernels_stem,
)
from spikeformers.neurons import ILIF, LIF
from spikeformers.transform.expand import expand
from tests.golden import cases
from tests.helpers import assert_same, enliven, gradients, randn

TINY = "ms_resnet_tiny"


def test_every_block_starts_as_its_shortcut() -> None:
    model = sf.create_model(TINY).double()
    first, second = model.stages[1].blocks
    x = randn(2, 2, 12, 8, 8, seed=1)
    assert torch.equal(second(x), x)
    narrow = randn(2, 2, 8, 8, 8, seed=2)
    model.eval()  # the statistics of a shortcut would move
    assert torch.equal(first(narrow), first.shortcut(narrow))


def test_gains_start_at_the_threshold() -> None:
    model = sf.create_model(TINY)
    gains = {n: set(m.weight.tolist()) for n, m in model.named_modules() if type(m) is BatchNorm}
    lasts = {name for name in gains if name.endswith("conv2.norm")}
    assert len(lasts) == 4
    assert all(gain == ({0.0} if name in lasts else {0.5}) for name, gain in gains.items())


def test_a_quarter_of_the_membrane_survives_and_equality_stays_silent() -> None:
    x = torch.tensor([[0.5, 0.5001, 0.4], [0.5, 0.5, 0.41]], dtype=torch.float64)
    assert MSLIF()(x).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_the_form_of_104_layers_takes_odd_maps_and_trains_all_its_parameters() -> None:
    model = sf.create_model(TINY, stem=small_kernels_stem, shortcut=pooled_shortcut)
    y = enliven(model)(randn(2, 2, 3, 37, 61, seed=1))
    (y * randn(*y.shape, seed=2)).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_dropout_drops_a_channel_from_all_steps_of_a_sample() -> None:
    torch.manual_seed(0)
    head = FiringHead(64, 3, lambda: LIF(v_threshold=0.0), dropout=0.25)
    assert isinstance(head.dropout, nn.Dropout)
    x = torch.ones(4, 8, 64, 2, 2)
    rates = head.spikes(x)
    assert_same(rates, rates[:1].expand_as(rates))
    assert rates.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs((rates[0] == 0).float().mean() - 0.25) < 0.06
    assert head.eval().spikes(x).eq(1).all()


def test_only_the_largest_drops_channels() -> None:
    with torch.device("meta"):
        rates = [sf.create_model(f"ms_resnet_{n}").head.dropout.p for n in (18, 34, 104)]
    assert rates == [0.0, 0.0, 0.2]


def test_with_integer_neurons_it_expands_to_binary_spikes() -> None:
    model = enliven(sf.create_model(TINY, neuron=partial(ILIF, levels=2))).eval()
    x = randn(2, 2, 3, 32, 32, seed=1)
    with torch.no_grad():
        expected = model(x)
        assert_same(expand(model, levels=2)(x), expected)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"dims and depths .* 3 and 1"):
        sf.create_model(TINY, depths=(1,))


@pytest.mark.parametrize("case", ["r18_t1", "r104_t6"])
def test_an_official_block_of_the_other_form_is_named(case: str) -> None:
    (found,) = (c for c in cases("ms_resnet") if c.name.endswith(case))
    given: dict[str, Any] = {**found.facts["kwargs"], "block": "BasicBlock"}
    with pytest.raises(ConfigError, match="block='BasicBlock': expected 'BasicBlock_"):
        sf.from_official({}, found.source, **given)
