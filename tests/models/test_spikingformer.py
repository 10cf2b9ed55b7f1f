"""Spikingformer: its sources are told apart, and no weight but the first sees more than spikes."""

import pytest
import torch
from torch import nn

import spikeformers as sf
from spikeformers.errors import ConfigError
from spikeformers.layers import Synapse
from spikeformers.neurons import LIF
from tests.golden import cases
from tests.helpers import enliven, randn

(CASE,) = (case for case in cases("spikingformer") if case.name.endswith("__imagenet_t4"))
PLAIN = "zhouchenlin2096/Spikingformer/imagenet/model.py"
CML = "zhouchenlin2096/Spikingformer-CML/imagenet/model.py"


def taus(model: nn.Module) -> set[float]:
    return {m.tau for m in model.modules() if isinstance(m, LIF)}


def test_equal_keys_of_two_repositories_give_two_models() -> None:
    plain, cml = (
        sf.from_official(CASE.state(), source, **CASE.facts["kwargs"]).eval()
        for source in (PLAIN, CML)
    )
    assert list(plain.state_dict()) == list(cml.state_dict())
    assert set(sf.to_official(plain)) == set(sf.to_official(cml))
    with torch.no_grad():
        assert not torch.equal(plain(CASE.input()), cml(CASE.input()))


def test_a_model_of_our_own_needs_the_source_to_be_named() -> None:
    model = sf.create_model("spikingformer_tiny")
    with pytest.raises(ConfigError, match="source is needed"):
        sf.to_official(model)
    assert set(sf.to_official(model, source=PLAIN)) == set(sf.to_official(model, source=CML))


@pytest.mark.parametrize(
    ("name", "tau"),
    [
        ("spikingformer_cifar_2_384", 2.0),
        ("spikingformer_events_2_256", 1.5),
        ("spikingformer_cml_8_384", 2.0),
        ("spikingformer_cml_events_2_256", 1.75),
    ],
)
def test_time_constants_are_the_published_ones(name: str, tau: float) -> None:
    with torch.device("meta"):
        assert taus(sf.create_model(name)) == {tau}


@pytest.mark.parametrize(
    ("file", "tau"),
    [
        ("Spikingformer/cifar10-dvs", 1.5),
        ("Spikingformer/dvs128-gesture", 1.5),
        ("Spikingformer-CML/cifar10-dvs", 1.75),
        ("Spikingformer-CML/dvs128-gesture", 1.75),
    ],
)
def test_event_files_have_their_time_constants(file: str, tau: float) -> None:
    source = f"zhouchenlin2096/{file}/model.py"
    model = sf.from_official(CASE.state(), source, **CASE.facts["kwargs"])
    assert taus(model) == {tau}


def test_all_synapses_but_the_first_see_binary_spikes() -> None:
    model = enliven(sf.create_model("spikingformer_tiny", depth=2)).eval()
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, Synapse):
            module.register_forward_pre_hook(
                lambda _m, args, path=path: seen.update({path: args[0].unique().tolist()})
            )
    with torch.no_grad():
        model(randn(3, 2, 3, 32, 48, seed=1))
    binary = {path for path, values in seen.items() if values == [0, 1]}
    assert set(seen) - binary == {"stages.0.embed.0.conv"}
