"""Spike-driven Transformer: what its arguments compose, and its attention for event frames."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import SDSA1, LinearBN
from spikeformers.models.sdt import PooledSDSA1
from spikeformers.neurons import IF, PLIF
from tests.helpers import assert_same, enliven, gradients, randn

TINY = "sdt_tiny"
SOURCE = "SpikeDrivenTransformer"
OPTIONS: dict[str, dict[str, Any]] = {
    "plif": dict(neuron=PLIF),
    "narrow": dict(expansion=1),
    "pooled": dict(attention=partial(PooledSDSA1, qkv=LinearBN, proj=LinearBN)),
}


def test_the_position_is_the_first_branch_of_the_one_trunk() -> None:
    model = sf.create_model(TINY)
    assert [[*block] for block in model.stages[0].blocks] == [
        ["position", "attn", "mlp"],
        ["attn", "mlp"],
    ]
    *_, last = model.stages[0].embed.named_children()
    assert last[0] == "conv4", "potentials enter the trunk, not spikes"


def test_both_halves_of_a_narrow_mlp_are_branches() -> None:
    model = sf.create_model(TINY, expansion=1)
    assert [*model.stages[0].blocks[1]] == ["attn", "mlp1", "mlp2"]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_train_fold_and_come_back(option: str, tmp_path: Path) -> None:
    model = enliven(sf.create_model(TINY, **OPTIONS[option]))
    x = randn(3, 2, 3, 48, 64, seed=1)
    y = model(x)
    (y * randn(*y.shape, seed=2)).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    sf.save_model(model.eval(), tmp_path / "model.safetensors")
    loaded = sf.load_model(tmp_path / "model.safetensors")
    with torch.no_grad():
        (potentials,) = model.features(x)
        assert torch.equal(loaded.features(x)[0], potentials)
        assert_same(sf.fold(model).features(x)[0], potentials)
    assert (potentials[:, 0] - potentials[:, 1]).abs().max() > 1e-3, "samples differ"


@pytest.mark.compile
@pytest.mark.parametrize("option", [None, *OPTIONS])
def test_every_product_behind_the_first_is_an_addition_or_a_mask(option: str | None) -> None:
    model = sf.create_model(TINY, **OPTIONS.get(option, {})).eval()
    report = sf.audit(sf.fold(model), torch.zeros(2, 1, 3, 32, 32))
    verdicts = [row.verdict for row in report.rows]
    assert verdicts.count("encode") == 1
    assert {*verdicts} == {"encode", "AC", "mask"}


@pytest.mark.parametrize("strides", [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 2, 2)], ids=str)
def test_each_of_the_four_convolutions_may_pool(strides: tuple[int, ...]) -> None:
    model = sf.create_model(TINY, strides=strides)
    (tokens,) = model.features(torch.zeros(1, 1, 3, 32, 48))
    assert tokens.shape[3:] == (32 // model.strides[0], 48 // model.strides[0])
    pools = [name for name, _ in model.stages[0].embed.named_children() if name[:4] == "pool"]
    assert pools == [f"pool{i}" for i, stride in enumerate(strides, 1) if stride == 2]


@pytest.mark.parametrize(("attention", "matters"), [(SDSA1, False), (PooledSDSA1, True)])
def test_only_pooled_attention_knows_its_heads(attention: type[SDSA1], matters: bool) -> None:
    x = (randn(2, 3, 8, 4, 5, seed=1) > 0).double()
    one, four = (
        enliven(attention(8, heads, neuron=IF, qkv=LinearBN, proj=LinearBN)).eval()
        for heads in (1, 4)
    )
    with torch.no_grad():
        assert torch.equal(one(x), four(x)) != matters


def test_a_lone_spike_spreads_to_neighbours_in_raster_order_and_in_its_head() -> None:
    attention = PooledSDSA1(4, heads=2)
    x = torch.zeros(1, 1, 4, 3, 4)
    x[0, 0, 1, 1, 0] = 1
    spread = attention._spread_over_plane(x)[0, 0]
    assert spread[:2].flatten(1).nonzero()[:, 1].unique().tolist() == [3, 4, 5]
    assert spread[:2].sum() == 6, "both channels of the head"
    assert spread[2:].sum() == 0, "no channel of the other"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (dict(strides=(2, 2, 2)), ConfigError, r"strides=\(2, 2, 2\): expected four strides"),
        (dict(strides=(2, 2, 2, 4)), ConfigError, "expected four strides of 1 or 2"),
        (dict(dim=4), ConfigError, "dim=4: expected at least 8"),
        (dict(depth=0), ConfigError, "depth=0: expected at least one block"),
        (dict(heads=3), InputError, "heads=3 does not divide dim=16"),
    ],
)
def test_impossible_sizes_are_refused(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sf.create_model(TINY, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(spike_mode="relu"), "spike_mode='relu': expected 'lif' or 'plif'"),
        (dict(pooling_stat="011"), "pooling_stat='011': expected four characters of 0 or 1"),
        (dict(pooling_stat="0121"), "pooling_stat='0121'"),
        (dict(mlp_ratios=2.5), "mlp_ratios=2.5: expected a whole number"),
    ],
)
def test_impossible_official_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.from_official({}, SOURCE, embed_dims=16, depths=1, **wrong)
