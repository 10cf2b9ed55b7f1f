"""QKFormer: its exchangeable parts, and the defect of the authors' code."""

from typing import Any

import pytest
import torch

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import QKCA, QKTA, SSA
from spikeformers.models import Backbone
from spikeformers.neurons import AcrossBatch
from tests.golden import Case
from tests.helpers import assert_same, enliven, gradients, randn

TINY = "qkformer_tiny"
OFFICIAL = [Case("qkformer__cifar_t4"), Case("msvit__cifar10_t4")]
defective = pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case.name)


def official(case: Case, corrected: bool = False) -> Backbone:
    return sf.from_official(case.state(), case.source, corrected, **case.facts["kwargs"]).eval()


@defective
def test_official_weights_let_samples_see_each_other_unless_corrected(case: Case) -> None:
    x = case.input()
    as_published, corrected = official(case), official(case, corrected=True)
    with torch.no_grad():
        assert_same(as_published(x[:, :1]), corrected(x[:, :1]))
        both = as_published(x)
        assert_same(both[0, 0], corrected(x)[0, 0])  # the very first scan has no predecessor
        assert (both[:, 1] - as_published(x[:, 1:])[:, 0]).abs().max() > 1e-3
        assert_same(corrected(x)[:, 1], corrected(x[:, 1:])[:, 0])


def test_the_defect_is_named_by_audit_and_refused_by_advance() -> None:
    case = Case("qkformer__imagenet_t1")
    model, x = official(case), case.input()[:, :, :, :16, :16]
    paths = [path for path, module in model.named_modules() if isinstance(module, AcrossBatch)]
    assert paths == ["stages.2.blocks.0.attn.fn.neuron"]
    (note,) = (note for note in sf.audit(model, x).notes if note.startswith(f"{paths[0]} "))
    assert "integrates across the batch" in note
    with pytest.raises(InputError, match=f"'{paths[0]}' integrates across the batch"):
        sf.advance(model, x)
    sf.advance(official(case, corrected=True), x)


STUDIES: dict[str, tuple[dict[str, Any], list[type]]] = {
    "as published": ({}, [QKTA, QKTA, SSA]),
    "channel form": (dict(attention=QKCA), [QKCA, QKCA, SSA]),
    "token form only": (dict(ssa_stages=0), [QKTA, QKTA, QKTA]),
    "self-attention only": (dict(ssa_stages=3), [SSA, SSA, SSA]),
    "two stages": (dict(dims=(8, 12), depths=(1, 2)), [QKTA, SSA]),
}


@pytest.mark.parametrize("study", STUDIES)
def test_attention_is_exchangeable(study: str) -> None:
    overrides, kinds = STUDIES[study]
    model = enliven(sf.create_model(TINY, **overrides))
    assert [type(stage.blocks[0]["attn"].fn.fn) for stage in model.stages] == kinds
    model(randn(2, 2, 3, 32, 32, seed=1)).square().sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    again = sf.create_model(TINY, **model.config.overrides)
    assert [type(stage.blocks[0]["attn"].fn.fn) for stage in again.stages] == kinds


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (dict(depths=(1, 1)), ConfigError, "dims and depths must have one entry per stage"),
        (dict(ssa_stages=4), ConfigError, "ssa_stages=4: expected 0 to 3"),
        (dict(heads=8), InputError, "heads=8 does not divide dim=12"),
        (dict(embed_strides=(4, 1)), InputError, r"strides=\(4, 1\): expected 1 or 2"),
    ],
)
def test_bad_arguments_are_named(
    overrides: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sf.create_model(TINY, **overrides)


def test_images_smaller_than_a_last_token_are_refused() -> None:
    with pytest.raises(InputError, match="smaller than the network's stride 16"):
        sf.create_model(TINY)(torch.zeros(1, 1, 3, 32, 15))


def test_official_depths_must_leave_room_for_the_first_stages() -> None:
    case = OFFICIAL[0]
    with pytest.raises(ConfigError, match="depths=1: expected 2 blocks or more"):
        sf.from_official({}, case.source, **{**case.facts["kwargs"], "depths": 1})
