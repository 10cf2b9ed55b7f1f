"""DSR: scores that represent, streams, and thresholds that stay up."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import spikeformers as sf
from spikeformers.analysis import audit
from spikeformers.errors import ConfigError
from spikeformers.layers import Conv, fold
from spikeformers.models.dsr import Norm, fine_stem
from spikeformers.neurons import DSRLIF
from spikeformers.streaming import advance
from tests.golden import cases
from tests.helpers import (
    assert_lively,
    assert_same,
    compositions,
    enliven,
    gradients,
    neurons_of,
    randn,
    spikes_of,
)

TINY = "dsr_tiny"
_LIF = partial(DSRLIF, v_threshold=0.4, dt=0.5)


def test_lif_scores_are_read_with_weights_that_fade() -> None:
    model = sf.create_model(TINY, neuron=_LIF)
    y = randn(4, 2, 10, seed=1)
    weights = np.exp(-0.5 * np.array([3, 2, 1, 0]))
    expected = np.average(y.numpy(), axis=0, weights=weights)
    assert_same(model.readout(y), torch.as_tensor(expected))
    assert_same(sf.create_model(TINY).readout(y), y.mean(0))
    assert_same(sf.create_model(TINY, neuron=_LIF, num_classes=None).readout(y), y.mean(0))


@pytest.mark.parametrize("overrides", [{}, dict(neuron=_LIF)], ids=["IF", "LIF"])
def test_any_chunking_equals_one_pass(overrides: dict[str, Any]) -> None:
    model = enliven(sf.create_model(TINY, **overrides)).eval()
    x = randn(4, 2, 3, 32, 32, seed=2)
    with torch.no_grad():
        assert_lively(spikes_of(model, lambda: model(x)))
        expected, (_, state) = model(x), advance(model, x)
        assert set(state) == {f"{path}.membrane" for path in neurons_of(model)}
        for lengths in compositions(4):
            carried, parts = None, []
            for part in x.split(lengths):
                y, carried = advance(model, part, carried)
                parts.append(y)
            assert_same(torch.cat(parts), expected)
            assert_same(carried, state)


def test_the_form_for_small_images_trains_all_its_parameters() -> None:
    shortcut = partial(Conv, kernel_size=1)
    small = dict(stem=fine_stem, shortcut=shortcut, bias=True, dropout=0.1)
    model = enliven(sf.create_model(TINY, **small, neuron=_LIF))
    y = model(randn(2, 2, 3, 16, 24, seed=1))
    (y * randn(*y.shape, seed=2)).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    assert model.strides == [1, 2, 4]


def test_every_synapse_sees_spikes_of_a_learned_height() -> None:
    report = audit(sf.create_model(TINY), torch.zeros(2, 1, 3, 32, 32))
    verdicts = {row.path: row.verdict for row in report.rows}
    assert {v for path, v in verdicts.items() if "conv" in path[-5:]} == {"encode", "AC"}
    first, *later = (v for path, v in verdicts.items() if path.endswith("norm"))
    # The first norm sees averages of spikes, which are integers of a common scale.
    assert first == "ACx" and {*later} == {"MAC"}


def test_a_norm_folds_into_a_weight_and_a_bias_per_channel() -> None:
    norm = enliven(Norm(3)).eval()
    x = randn(2, 2, 3, 4, 5, seed=1)
    folded = fold(norm)
    assert folded.weight.shape == (3, 1, 1, 1)
    assert_same(folded(x), norm(x))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"dims and depths .* 3 and 1"):
        sf.create_model(TINY, depths=(1,))


_FIXED = dict(train_Vth=False, Vth=6.0, alpha=0.5, Vth_bound=0.01, tau=1.0, delta_t=0.05)


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("cifar_if_t1", dict(block="Other"), "block='Other'"),
        ("cifar_if_t1", dict(neuron_type="plif"), "neuron_type='plif'"),
        ("in_if_t4", dict(bottleneck=True), "bottleneck=True"),
        ("in_if_t4", dict(snn_setting=dict(tau=1.0)), "snn_setting lacks Vth, Vth_bound, alpha"),
        ("in_if_t4", dict(snn_setting=_FIXED), "train_Vth=False"),
    ],
)
def test_bad_official_arguments_are_named(
    case: str, arguments: dict[str, Any], message: str
) -> None:
    (found,) = (c for c in cases("dsr") if c.name.endswith(case))
    with pytest.raises(ConfigError, match=message):
        sf.from_official({}, found.source, **{**found.facts["kwargs"], **arguments})
