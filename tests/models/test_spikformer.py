"""Spikformer: what its stream holds, and the sizes that only the paper lists."""

import pytest
import torch

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import pool_then_fire
from tests.helpers import enliven, randn

TINY = "spikformer_tiny"


@pytest.mark.parametrize(
    ("name", "millions"),
    [("spikformer_6_512", 23.37), ("spikformer_10_512", 36.01), ("spikformer_events_2_256", 2.57)],
)
def test_sizes_are_those_of_the_papers_tables(name: str, millions: float) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in sf.create_model(name).parameters())
    assert round(parameters / 1e6, 2) == millions


def test_every_size_exists_with_pooled_currents() -> None:
    names = {name for name in sf.list_models("spikformer_*") if name != TINY}
    plain = {name for name in names if not name.startswith("spikformer_cml_")}
    assert names - plain == {name.replace("spikformer_", "spikformer_cml_") for name in plain}


@pytest.mark.parametrize("depth", [1, 3])
def test_each_branch_adds_one_level_of_spikes(depth: int) -> None:
    model = enliven(sf.create_model(TINY, depth=depth)).eval()
    with torch.no_grad():
        (stream,) = model.features(3 * randn(4, 2, 3, 32, 48, seed=1))
    # Two levels leave the tokenizer, each block adds two.
    assert torch.equal(stream, stream.round())
    assert 2 < stream.max() <= 2 + 2 * depth
    assert 0 <= stream.min() < stream.max()


def test_the_place_of_the_pooling_changes_no_name_but_the_scores() -> None:
    x = randn(3, 2, 3, 32, 32, seed=1)
    plain = enliven(sf.create_model(TINY)).eval()
    cml = enliven(sf.create_model(TINY, downsample=pool_then_fire)).eval()
    assert list(plain.state_dict()) == list(cml.state_dict())
    assert not torch.equal(plain(x), cml(x))


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(InputError, match="heads=3 does not divide dim=16"):
        sf.create_model(TINY, heads=3)
