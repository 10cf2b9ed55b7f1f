"""Meta-SpikeFormer: published sizes, and the parts that its studies exchange."""

from typing import Any

import pytest
import torch

import spikeformers as sf
from spikeformers.layers import SDSA1, SDSA2, SDSA4, ChannelMLP, RepConv, Trunk
from spikeformers.models.meta_spikeformer import sew_shortcut, vanilla_shortcut
from tests.golden import published
from tests.helpers import assert_lively, enliven, gradients, randn, spikes_of

PUBLISHED = published("sdt_v2")
TINY = "meta_spikeformer_tiny"


def count(name: str, **overrides: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in sf.create_model(name, **overrides).parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta_spikeformer_15m", 15_112_208),
        ("meta_spikeformer_31m", 31_333_864),
        ("meta_spikeformer_55m", 55_350_248),
        ("meta_spikeformer_124m", 123_741_160),
    ],
)
def test_sizes_are_the_published_ones(name: str, parameters: int) -> None:
    assert count(name) == parameters
    assert parameters in {entry["param_count"] for entry in PUBLISHED}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("meta_spikeformer_15m", 15.1),
        ("meta_spikeformer_31m", 31.3),
        ("meta_spikeformer_55m", 55.4),
        ("meta_spikeformer_31m_mlp", 25.88),
        ("meta_spikeformer_31m_sdsa2", 28.59),
        ("meta_spikeformer_31m_sdsa1", 31.33),
        ("meta_spikeformer_31m_sew", 31.33),
        ("meta_spikeformer_31m_vanilla", 31.33),
    ],
)
def test_sizes_are_those_of_the_papers_tables(name: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(count(name) / 1e6, digits) == millions


def test_stages_have_the_published_layout() -> None:
    with torch.device("meta"):
        model = sf.create_model("meta_spikeformer_55m")
    assert model.channels == [64, 128, 256, 512, 640]
    assert model.strides == [2, 4, 8, 16, 16]
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 2, 6, 2]
    parts = [[*block] for stage in model.stages for block in stage.blocks]
    assert parts == 4 * [["mixer", "mlp"]] + 8 * [["attn", "mlp"]]
    assert all(isinstance(stage.blocks, Trunk) for stage in model.stages)
    first = [name for name, _ in model.stages[0].embed.named_children()]
    assert first == ["conv"], "no neuron stands in front of the image"


STUDIES: dict[str, dict[str, Any]] = {
    "sdsa1": dict(attention=SDSA1),
    "sdsa2": dict(attention=SDSA2),
    "sdsa4": dict(attention=SDSA4),
    "sew": dict(shortcut=sew_shortcut),
    "vanilla": dict(shortcut=vanilla_shortcut),
    "mlp": dict(channel_mixer=ChannelMLP),
    "allconv": dict(conv_stages=5),
    "allattn": dict(conv_stages=0),
}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_trains_all_its_parameters(study: str) -> None:
    model = enliven(sf.create_model(TINY, **STUDIES[study]))
    y = model(randn(2, 2, 3, 32, 48, seed=1))
    (y * randn(*y.shape, seed=2)).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize("study", STUDIES)
def test_in_every_study_the_scores_depend_on_the_image(study: str) -> None:
    model = enliven(sf.create_model(TINY, **STUDIES[study])).eval()
    with torch.no_grad():
        scores = model.readout(model(3 * randn(4, 2, 3, 48, 64, seed=1)))
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("study", sorted(STUDIES.keys() - {"sew", "vanilla"}))
def test_behind_a_trunk_the_classifier_sees_spikes(study: str) -> None:
    model = enliven(sf.create_model(TINY, **STUDIES[study])).eval()
    with torch.no_grad():
        spikes = spikes_of(model, lambda: model(3 * randn(4, 2, 3, 48, 64, seed=1)))
    assert_lively({"head.neuron": spikes["head.neuron"]})


@pytest.mark.parametrize("study", ["sew", "vanilla"])
def test_streams_of_spikes_hold_integers(study: str) -> None:
    model = enliven(sf.create_model(TINY, **STUDIES[study])).eval()
    with torch.no_grad():
        for feature in model.features(randn(2, 1, 3, 32, 32, seed=1)):
            values = feature.unique()
            assert torch.equal(values, values.round())
            assert values.min() == 0
            assert values.max() <= (1 if study == "vanilla" else 3)


@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_the_norm_gain_reaches_norms_in_front_of_neurons_and_sums_alone(gain: float) -> None:
    model = sf.create_model(TINY, norm_gain=gain)
    inner = {
        id(norm)
        for m in model.modules()
        if isinstance(m, RepConv)
        for norm in (m.border_norm, m.inner_norm)
    }
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            expected = 1.0 if id(module) in inner else gain
            assert (module.weight == expected).all()
