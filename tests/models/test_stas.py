"""Tokens halt, for good, and what does not run costs nothing and changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.models import Backbone
from spikeformers.models._some_tokens import each, run_gathered, run_masked
from spikeformers.models.stas import Halting, RunningMean
from spikeformers.streaming import advance
from tests.helpers import assert_same, enliven, gradients, randn

BACKBONES = ["spikformer_tiny", "sdt_tiny"]


def halting(backbone: str, **options: Any) -> Halting:
    model = sf.create_model("stas", backbone=backbone, num_classes=10, **options)
    return enliven(model)


def static(steps: int = 4, batch: int = 3) -> Tensor:
    return randn(1, batch, 3, 32, 48, seed=1).expand(steps, -1, -1, -1, -1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tokens_halt_one_by_one_and_for_good(backbone: str) -> None:
    model = halting(backbone, offset=-1.0).eval()
    with torch.no_grad():
        executed = model.executed(static())
    depth = len(model.stages[0].blocks)
    assert executed.shape[:3] == (4, depth, 3)
    runs = executed.flatten(0, 1)
    assert (runs[1:] <= runs[:-1]).all(), "what has halted stays so"
    counts = runs.sum(0)
    assert runs[0].all() and counts.unique().numel() > 1, "tokens differ in how long they run"
    assert runs[-1].mean() < 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gathering_equals_masking(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = halting(backbone, offset=-1.0).eval(), static()
    with torch.no_grad():
        gathered, state = advance(model, x)
        monkeypatch.setattr("spikeformers.models.stas.run_gathered", run_masked)
        masked, other = advance(model, x)
    torch.testing.assert_close(gathered, masked, atol=1e-9, rtol=0)
    assert_same(state, other)
    assert run_gathered is not run_masked


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_halting_it_is_the_backbone(backbone: str) -> None:
    """At one step all tokens run, and the tokenizer has seen the image once in both."""
    model = halting(backbone, offset=-30.0).eval()
    plain = sf.create_model(backbone).double().eval()
    # Behind `stem` stand the tokenizer and what led the blocks.
    moved = {"embed.embed.stem.0.": "embed.", "embed.embed.stem.1.": "blocks."}
    moved = moved if backbone == "sdt_tiny" else {"embed.embed.stem.": "embed."}
    weights = model.state_dict()
    for ours, theirs in moved.items():
        weights = {name.replace(ours, theirs): t for name, t in weights.items()}
    plain.load_state_dict(weights)
    x = static(1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=1e-9, rtol=0)


@pytest.mark.parametrize("integrate", ["FirstStep", "RunningMean"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_streams_in_chunks(backbone: str, integrate: str) -> None:
    model = halting(backbone, integrate=integrate, offset=-1.0).eval()
    x = static() if integrate == "FirstStep" else randn(4, 3, 3, 32, 48, seed=2)
    with torch.no_grad():
        whole = model(x)
        first, state = advance(model, x[:1])
        second, state = advance(model, x[1:3], state)
        third, _ = advance(model, x[3:], state)
    assert_same(torch.cat([first, second, third]), whole)
    assert (whole[0] - whole[3]).abs().max() > 1e-3, "later steps add something"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_samples_do_not_see_each_other(backbone: str) -> None:
    model, x = halting(backbone, offset=-1.0).eval(), static()
    with torch.no_grad():
        y = model(x)
        assert_same(model(x[:, [2, 0, 1]]), y[:, [2, 0, 1]])
        assert_same(model(x[:, :1]), y[:, :1])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_trains_with_a_cost_that_has_a_gradient(backbone: str) -> None:
    model, x = halting(backbone, offset=-1.0), static()
    y = model(x)
    assert y.logits.shape == (4, 3, 10)
    executed = model.executed(x).sum((0, 1))
    assert executed.min() >= 1
    cost = y.aux["ponder"]
    assert executed.mean() < cost <= executed.mean() + 1
    (y.logits.square().sum() + cost).backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    model.zero_grad()
    model(x).aux["ponder"].backward()
    reached = [p.grad.abs().sum() for p in model.stages.parameters() if p.grad is not None]
    assert sum(reached) > 0


def test_batch_norms_see_executed_tokens_only() -> None:
    """Statistics are those of the gathered tokens: what has halted may hold any value."""
    model, x = halting("sdt_tiny", offset=-1.0), static(1)
    (block, *_), tokens = each(model.stages[0].blocks), randn(3, model.channels[0], 20, 1, seed=3)
    runs = (torch.arange(20) % 3 > 0).view(1, 1, 20, 1).expand(3, -1, -1, -1)
    outputs = []
    for noise in (0.0, 100.0):
        y = torch.where(runs, tokens, tokens + noise)
        new, _ = run_masked(block, y, runs, {}, model.per_token[0])
        outputs.append(new[runs.expand_as(new)])
        assert torch.equal(new[~runs.expand_as(new)], y[~runs.expand_as(new)])
    assert torch.equal(*outputs)
    assert x.shape[0] == 1


def test_a_running_mean_never_sees_the_future() -> None:
    mean = RunningMean(nn.Identity())
    x = randn(3, 2, 1, 2, 2, seed=4)
    expected = torch.stack([x[: t + 1].mean(0) for t in range(3)])
    torch.testing.assert_close(mean(x), expected)


def test_a_saved_model_comes_back(tmp_path: Any) -> None:
    model = halting("sdt_tiny", offset=-1.0).eval()
    sf.save_model(model, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(sf.load_model(tmp_path / "model.safetensors")(static()), model(static()))


def test_refuses_backbones_whose_tokens_meet_elsewhere() -> None:
    with pytest.raises(ConfigError, match="backbone has 5 stages: tokens halt within one"):
        sf.create_model("stas", backbone="meta_spikeformer_tiny")
    with pytest.raises(ConfigError, match="mix neighbours by more than attention"):
        sf.create_model("stas", backbone="sdt_cifar10dvs_2_256")
    with pytest.raises(ConfigError, match="margin=0: expected a number between 0 and 1"):
        sf.create_model("stas", backbone="sdt_tiny", margin=0)
    with pytest.raises(InputError, match="the time steps of x differ"):
        halting("sdt_tiny")(randn(2, 1, 3, 32, 32, seed=1))
    assert isinstance(sf.create_model("stas_sdt_cifar_2_512"), Backbone)
