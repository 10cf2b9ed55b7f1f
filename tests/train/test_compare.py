"""Several models under one budget: one table, nothing lost, and no mistake after work has begun."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spikeformers.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    StoppedError,
    TrainingError,
)
from spikeformers.train import Recipe, compare, load_trained
from spikeformers.train.loop import measure_pace
from tests.train.small import SMALL

# The function has the name of its file.
module = importlib.import_module("spikeformers.train.compare")

MODELS = ["meta_spikeformer_xs32", "meta_spikeformer_tiny"]
SETTINGS = [word for word in SMALL if not word.startswith("model.")]
Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def compared(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Return a function that compares in this process: `compared(["name"], "train.seed=1")`."""
    monkeypatch.setattr(module, "alone", lambda _stop, work, *arguments: work(*arguments))

    def run(models: list[str], *overrides: str, **options: Any) -> dict[str, Any]:
        where = f"data.root={idx_folder}"
        settings = [*SETTINGS, where, *overrides]
        return compare(models, "mnist", tmp_path / "out", overrides=settings, **options)

    return run


def test_models_differ_in_nothing_but_themselves(compared: Compare, tmp_path: Path) -> None:
    facts = compared(MODELS)
    assert json.loads((tmp_path / "out/compare.json").read_text()) == facts
    one, two = facts["rows"]
    assert [row["model"] for row in (one, two)] == MODELS
    different = {"model", "out"}
    assert {key for key in one["recipe"] if one["recipe"][key] != two["recipe"][key]} == different
    for row in (one, two):
        assert {key for key, value in row.items() if value is None} == {"error"}
        model, recipe, progress = load_trained(row["checkpoint"])
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert (row["timesteps"], row["epochs"], row["images"]) == (2, 2, 10)
        # One evaluation, after the last epoch: the best one is not chosen by held-out images.
        assert recipe.train.evaluate_every == 2 and progress["top1_last"] == row["top1"]
        assert recipe.as_dict() == row["recipe"] and 0 < row["firing_rate"] < 1


def test_a_repeated_call_trains_what_is_new(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = compared(MODELS[:1])["rows"]
    trained: list[str] = []
    fit = module.fit

    def noted(recipe: Recipe, device: str | None) -> dict[str, Any]:
        trained.append(recipe.model.name)
        return fit(recipe, device)

    monkeypatch.setattr(module, "fit", noted)
    again, second = compared(MODELS[1:])["rows"]
    assert again == first and trained == MODELS[1:]
    checkpoint = second["checkpoint"]
    measured = compared([*MODELS, checkpoint])["rows"][2]
    assert trained == MODELS[1:]
    for key in ("top1", "firing_rate", "parameters", "epochs", "minutes", "seed"):
        assert measured[key] == second[key], key
    assert measured["train_images_per_second"] is measured["train_memory_mib"] is None


def test_what_fails_is_told_and_tried_again(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> dict[str, Any]:
        raise TrainingError("the loss became nan")

    with monkeypatch.context() as patched:
        patched.setattr(module, "fit", diverge)
        failed = compared(MODELS)["rows"]
    assert [row["error"] for row in failed] == 2 * ["the loss became nan"]
    assert failed[0]["top1"] is None
    repaired = compared(MODELS[1:])["rows"]
    assert [row["top1"] is None for row in repaired] == [True, False]
    assert repaired[1]["error"] is None


def test_what_is_done_survives_a_stop(compared: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = module.fit

    def stop_at_the_second(recipe: Recipe, device: str | None) -> dict[str, Any]:
        if recipe.model.name == MODELS[1]:
            raise StoppedError("stopped by SIGTERM", 15)
        return fit(recipe, device)

    with monkeypatch.context() as patched:
        patched.setattr(module, "fit", stop_at_the_second)
        with pytest.raises(StoppedError):
            compared(MODELS)
    monkeypatch.setattr(module, "_measure", lambda *_: {"top1": 12.5})
    one, two = compared(MODELS)["rows"]
    assert one["firing_rate"] > 0 and two["top1"] == 12.5


def test_minutes_become_epochs_with_a_whole_schedule(
    compared: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = {"start": 6.0, "epoch": 10.0}
    monkeypatch.setattr(module, "measure_pace", lambda *_: pace)
    monkeypatch.setattr(module, "_measure", lambda *_: {"top1": 12.5})
    with pytest.raises(ConfigError, match=r"tiny needs 0.27 minutes for an epoch.*=0.25 is too"):
        compared(MODELS[1:], minutes=0.25)
    (row,) = compared(MODELS[1:], "train.warmup_epochs=0.5", minutes=0.9)["rows"]
    assert row["epochs"] == 4
    settings = row["recipe"]["train"]
    assert (settings["epochs"], settings["warmup_epochs"], settings["evaluate_every"]) == (4, 1, 4)
    # What was planned is not measured again.
    pace["epoch"] = 1.0
    (again,) = compared(MODELS[1:], "train.warmup_epochs=0.5", minutes=0.9)["rows"]
    assert again == row


def test_the_pace_is_measured_and_nothing_written(small: Callable[..., Recipe]) -> None:
    recipe = small()
    pace = measure_pace(recipe, "cpu", 0.0)
    assert pace["epoch"] > 0 and pace["start"] >= 0
    assert not Path(recipe.out).exists()


def test_other_settings_are_refused(compared: Compare, tmp_path: Path) -> None:
    compared(MODELS[1:])
    with pytest.raises(ConfigError, match=r"train\.seed was 0 and is 1.*another folder"):
        compared(MODELS, "train.seed=1")
    with pytest.raises(ConfigError, match=r"budget\.epochs was 2 and is 3"):
        compared(MODELS, epochs=3)
    (tmp_path / "out/compare.json").write_text('{"rows": [')
    with pytest.raises(DataError, match=r"compare\.json is damaged"):
        compared(MODELS)


def test_overrides_go_to_the_models_that_have_them(compared: Compare) -> None:
    (row,) = compared(MODELS[1:], "model.overrides={norm_gain: 2.5}")["rows"]
    assert row["recipe"]["model"]["overrides"] == {"norm_gain": 2.5}


@pytest.mark.parametrize(
    ("models", "overrides", "options", "error", "message"),
    [
        ([], [], {}, ConfigError, "name at least one model"),
        (["meta_spikeformer_16m"], [], {}, ConfigError, "did you mean"),
        (MODELS, ["data.image_size=8"], {}, ConfigError, "tiny: .* smaller than the network"),
        (["spike_yolo_tiny"], ["data.image_size=32"], {}, ConfigError, "compare classifiers only"),
        (MODELS, ["model.overrides={nrom_gain: 2}"], {}, ConfigError, "did you mean 'norm_gain'"),
        (MODELS, ["data.root=/nowhere"], {}, DataError, "there is no folder /nowhere"),
        (MODELS, [], {"minutes": 1.0, "epochs": 1}, ConfigError, "give one of the two"),
        (MODELS, [], {"minutes": 0.0}, ConfigError, "minutes=0: expected more than 0"),
        (MODELS, [], {"epochs": -1}, ConfigError, "epochs=-1: expected more than 0"),
        (["none.safetensors"], [], {}, CheckpointError, "there is no checkpoint none"),
    ],
)
def test_mistakes_are_told_before_work_starts(
    compared: Compare,
    tmp_path: Path,
    models: list[str],
    overrides: list[str],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        compared(models, *overrides, **options)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_data_is_refused(compared: Compare, tmp_path: Path) -> None:
    (row,) = compared(MODELS[1:], epochs=1)["rows"]
    with pytest.raises(ConfigError, match=r"was trained on mnist .* the comparison is on digits"):
        compare([row["checkpoint"]], "digits", tmp_path / "other")
