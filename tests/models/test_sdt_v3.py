"""E-SpikeFormer: its neurons, what drops in training, what cannot be built, what multiplies."""

from functools import partial
from typing import Any

import pytest
import torch

import spikeformers as sf
from spikeformers.analysis import audit
from spikeformers.errors import ConfigError, InputError
from spikeformers.models.sdt_v3_large import membrane_head, scaled_attn_block
from spikeformers.neurons import ILIF
from spikeformers.streaming import advance
from spikeformers.types import Outputs
from tests.helpers import enliven, neurons_of, randn, spikes_of

BOTH = pytest.mark.parametrize("name", ["sdt_v3_tiny", "sdt_v3_large_tiny"])
BASE = "Model_Base/models.py:Spiking_vit_MetaFormer_Spike_SepConv"
LARGE = "Model_Large/spikformer.py:Spikformer"


@BOTH
def test_neurons_emit_quarters_and_the_last_one_integers(name: str) -> None:
    model = enliven(sf.create_model(name))
    spikes = spikes_of(model, lambda: model(randn(1, 2, 3, 64, 64)))
    last = spikes.pop("head.neuron")
    assert set(last.unique().tolist()) <= {0, 1, 2, 3, 4} and last.max() > 1
    emitted = {value for s in spikes.values() for value in s.unique().tolist()}
    assert emitted == {0, 0.25, 0.5, 0.75, 1}


@BOTH
def test_steps_are_images_of_their_own(name: str) -> None:
    model, x = enliven(sf.create_model(name)).eval(), randn(3, 2, 3, 48, 32)
    with torch.no_grad():
        y, state = advance(model, x)
        each = torch.cat([model(step[None]) for step in x])
    assert state == {}
    torch.testing.assert_close(y, each, atol=1e-9, rtol=0)


@BOTH
def test_eight_levels_are_a_choice_of_the_neuron(name: str) -> None:
    neuron = partial(ILIF, levels=8, decay=0.0, scale=0.125)
    model = enliven(sf.create_model(name, neuron=neuron)).eval()
    spikes = spikes_of(model, lambda: model(randn(1, 2, 3, 64, 64)))
    spikes.pop("head.neuron")
    assert {8 * v for s in spikes.values() for v in s.unique().tolist()} == set(range(9))
    assert model.config.overrides["neuron"] == {"ILIF": {"levels": 8, "decay": 0.0, "scale": 0.125}}


@pytest.mark.compile
def test_only_attention_multiplies_signals() -> None:
    """Queries, keys and values are integers; everything else adds weights, up to four times."""
    report = audit(sf.create_model("sdt_v3_tiny", heads=2), torch.zeros(1, 1, 3, 32, 32))
    verdicts: dict[str, set[str]] = {}
    for row in report.rows:
        verdicts.setdefault(row.verdict, set()).add(row.path)
    products = {f"stages.{i}.blocks.0.attn.fn" for i in (3, 4)}
    assert verdicts.pop("MACint") == products
    assert set(verdicts) == {"encode", "ACx"}
    assert verdicts["encode"] == {"stages.0.embed.conv"}


def test_a_folded_large_model_has_no_factor_left_in_its_attention() -> None:
    folded = sf.fold(sf.create_model("sdt_v3_large_tiny").eval())
    attention = folded.stages[3].blocks[0]["attn"].fn
    assert (attention.scale, attention.neuron.v_threshold) == (1.0, 8.0)


def test_the_large_trunk_drops_attention_and_mlp_but_not_the_map_in_front() -> None:
    with torch.device("meta"):
        large = sf.create_model("sdt_v3_large_83m", drop_path=0.11)
        plain = sf.create_model("sdt_v3_large_173m", drop_path=0.11)
    rates = torch.tensor(large.stages[3].blocks.drop_path_rates).view(12, 3)
    rising = torch.linspace(0, 0.11, 12)
    torch.testing.assert_close(rates, torch.stack([0 * rising, rising, rising], 1))
    rates = torch.tensor(plain.stages[3].blocks.drop_path_rates).view(12, 2)
    torch.testing.assert_close(rates, torch.stack([rising, rising], 1))
    assert [set(stage.blocks.drop_path_rates) for stage in plain.stages[:3]] == [{0.0}] * 3


def test_one_head_reads_the_membrane_and_the_other_one_spikes() -> None:
    model = enliven(sf.create_model("sdt_v3_large_tiny"))
    head, x = model.head, 3 * randn(2, 3, 24, 4, 4)
    y = head(x)
    assert isinstance(y, Outputs) and set(y.aux) == {"kd"}
    membrane = x.mean((-2, -1))
    integers = (membrane.clamp(0, 4) + 0.5).floor()
    torch.testing.assert_close(y.logits, head.linear(membrane))
    torch.testing.assert_close(y.aux["kd"], head.linear_kd(integers))
    torch.testing.assert_close(head.eval()(x), (y.logits + y.aux["kd"]) / 2)


def test_without_a_teacher_no_neuron_stands_in_the_head() -> None:
    model = sf.create_model("sdt_v3_large_tiny", head=membrane_head, block=scaled_attn_block)
    assert not any(path.startswith("head.") for path in neurons_of(model))
    assert isinstance(model(torch.zeros(1, 1, 3, 32, 32)), torch.Tensor)
    assert model.config.overrides == {"head": "membrane_head", "block": "scaled_attn_block"}


def test_large_heads_start_as_published() -> None:
    torch.manual_seed(0)
    head = sf.create_model("sdt_v3_large_tiny", num_classes=100).head
    bound = (6 / (24 + 100)) ** 0.5  # Xavier's
    for linear in (head.linear, head.linear_kd):
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert (linear.bias == 0).all()


def official(**arguments: Any) -> dict[str, Any]:
    sizes = dict(num_heads=8, mlp_ratios=4, depths=8, embed_dim=[16, 16, 16, 16])
    return {**sizes, **arguments}


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (BASE, official(depths=5), r"depths=5: .* below 6"),
        (BASE, official(embed_dim=[16, 16]), r"five stages, got 3 and 5"),
        (BASE, official(num_heads=3), r"heads=3 does not divide dim=16"),
        (LARGE, official(), r"embed_dim=\[16, 16, 16, 16\]: expected three widths"),
        (LARGE, official(embed_dim=[8, 8, 8], nb_classes=7), r"num_classes=1000 and nb_classes=7"),
    ],
)
def test_what_the_authors_cannot_build_is_refused(
    source: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        sf.from_official({}, source, **arguments)


def test_stages_must_be_complete() -> None:
    with pytest.raises(ConfigError, match="four stages, got 4 and 3"):
        sf.create_model("sdt_v3_large", dims=(8, 8, 8, 8), depths=(1, 1, 1))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Efficient_Spiking_Transformer_t", "sdt_v3_3m"),
        ("Efficient_Spiking_Transformer_l", "sdt_v3_19m"),
        ("spikformer12_512", "sdt_v3_large_83m"),
        ("spikformer12_768", "sdt_v3_large_173m"),
    ],
)
def test_the_published_functions_make_the_registered_sizes(source: str, name: str) -> None:
    with torch.device("meta"):
        model = sf.create_model(name)
    loaded = sf.from_official(sf.to_official(model, source=source), source)
    shapes, expected = (
        {key: tensor.shape for key, tensor in m.state_dict().items()} for m in (loaded, model)
    )
    assert shapes == expected
