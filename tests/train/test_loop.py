"""Training writes what it promises and goes on exactly where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spikeformers.errors import CheckpointError, ConfigError, DataError, TrainingError
from spikeformers.models import load_model, read_checkpoint
from spikeformers.train import Recipe, evaluate_checkpoint, fit, load_trained
from spikeformers.train import loop as loop_module

Small = Callable[..., Recipe]


def log_of(recipe: Recipe) -> list[dict[str, object]]:
    lines = (Path(recipe.out) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_times(entries: list[dict[str, object]]) -> list[dict[str, object]]:
    timed = {"seconds", "images_per_second", "recipe"}
    return [
        {k: v for k, v in entry.items() if k not in timed}
        for entry in entries
        if entry["event"] != "resume"
    ]


def test_a_run_writes_checkpoints_metrics_and_log(small: Small) -> None:
    recipe = small()
    metrics = fit(recipe)
    out = Path(recipe.out)
    assert sorted(p.name for p in out.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "log.jsonl",
        "metrics.json",
    ]
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["epochs"] == 2 and metrics["images"] == 10
    assert 0 <= metrics["top1"] <= 100 and metrics["top1"] == metrics["top1_per_step"][-1]
    assert sum(map(sum, metrics["confusion"])) == 10
    assert [entry["event"] for entry in log_of(recipe)] == ["start", "epoch", "epoch"]
    evaluated = evaluate_checkpoint(out / "best.safetensors")
    assert evaluated["top1"] == metrics["top1"]
    model, again, progress = load_trained(out / "last.safetensors")
    assert again == recipe and not model.training
    assert len(progress["classes"]) == 10 and progress["epoch"] == 2


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small("train.epochs=3", f"out={tmp_path / 'whole'}")
    fit(whole)

    halved = small("train.epochs=3", f"out={tmp_path / 'halved'}")
    save_last = loop_module.save_last

    def stop_after_two(*arguments: object) -> None:
        save_last(*arguments)
        if arguments[1].done.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_last", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        fit(halved)
    monkeypatch.undo()
    torch.rand(7)  # a resumed process has another global generator
    fit(halved)

    for name in ("best.safetensors", "last.safetensors"):
        expected, found = (load_file(Path(r.out) / name) for r in (whole, halved))
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), key
    assert without_times(log_of(whole)) == without_times(log_of(halved))


def test_a_finished_run_is_not_trained_again(small: Small) -> None:
    recipe = small()
    first = fit(recipe)
    before = (Path(recipe.out) / "last.safetensors").read_bytes()
    assert fit(recipe) == first
    assert (Path(recipe.out) / "last.safetensors").read_bytes() == before


def test_other_settings_do_not_resume(small: Small, tmp_path: Path) -> None:
    fit(small("train.epochs=1"))
    with pytest.raises(ConfigError, match=r"train.learning_rate was 0.003 and is 0.5"):
        fit(small("train.epochs=1", "train.learning_rate=0.5"))
    moved = tmp_path / "moved"
    (tmp_path / "idx").rename(moved)
    fit(small("train.epochs=1", f"data.root={moved}"))


def test_evaluation_needs_only_the_test_files(small: Small, idx_folder: Path) -> None:
    recipe = small("train.epochs=1")
    metrics = fit(recipe)
    for file in idx_folder.glob("train-*"):
        file.unlink()
    best = Path(recipe.out) / "best.safetensors"
    assert evaluate_checkpoint(best, str(idx_folder))["top1"] == metrics["top1"]


def test_workers_do_not_change_the_result(small: Small, tmp_path: Path) -> None:
    runs = [
        small("train.epochs=1", f"data.workers={n}", f"out={tmp_path / str(n)}") for n in (0, 1)
    ]
    weights = [load_file(Path(r.out) / "last.safetensors") for r in runs if fit(r)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_bfloat16_trains(small: Small) -> None:
    assert fit(small("train.epochs=1", "train.precision=bfloat16"))["loss"] > 0


def test_a_non_finite_loss_stops_and_names_step_batch_and_checkpoint(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps an epoch, a checkpoint after each; the rate explodes in the second epoch."""

    def explode(step: int, *_: object) -> float:
        return 1e38 if step == 2 else 1e-3

    monkeypatch.setattr(loop_module, "learning_rate_at", explode)
    recipe = small("train.clip_norm=null", "train.recalibration_batches=0")
    with pytest.raises(
        TrainingError, match=r"the loss became (nan|inf) at step 3 \(epoch 2, batch 1\).*last\.safe"
    ):
        fit(recipe)
    header = read_checkpoint(Path(recipe.out) / "last.safetensors")[1]
    assert header["progress"]["step"] == 2


def test_weights_that_are_not_finite_are_not_saved(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("train.clip_norm=null", "train.checkpoint_steps=1")
    update = loop_module._update

    def poison(run: object, *arguments: object) -> None:
        update(run, *arguments)
        if run.training.done.step == 1:
            next(run.training.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(loop_module, "_update", poison)
    with pytest.raises(TrainingError, match=r"is not finite after step 2.*last\.safe"):
        fit(recipe)
    header = read_checkpoint(Path(recipe.out) / "last.safetensors")[1]
    assert header["progress"]["step"] == 1


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.root=/nowhere"], DataError, "there is no folder /nowhere"),
        (["model.in_channels=3"], ConfigError, "model.in_channels=3, but mnist has 1"),
        (["model.num_classes=7"], ConfigError, "model.num_classes=7, but mnist has 10"),
        (["model.name=meta_spikeformer_xs"], ConfigError, "did you mean"),
        (["model.overrides={hads: 2}"], ConfigError, "did you mean 'heads'"),
        (["train.batch_size=64"], ConfigError, "train.batch_size=64, but there are 20 images"),
        (["data.name=mnits"], ConfigError, "did you mean 'mnist'"),
    ],
)
def test_bad_input_is_refused_without_traces(
    small: Small, overrides: list[str], error: type[Exception], message: str
) -> None:
    recipe = small(*overrides)
    with pytest.raises(error, match=message):
        fit(recipe)
    assert not Path(recipe.out).exists()


def test_a_full_disk_keeps_the_last_checkpoint(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("train.epochs=1")
    fit(recipe)
    last = Path(recipe.out) / "last.safetensors"
    before = last.read_bytes()

    def full(_tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    last.unlink()
    last.write_bytes(before)
    resumed = small("train.epochs=1", f"out={Path(recipe.out).parent / 'other'}")
    with pytest.raises(CheckpointError, match="No space left"):
        fit(resumed)
    assert not list(Path(resumed.out).glob("*.safetensors"))
    assert not list(Path(resumed.out).glob(".*partial"))
    assert last.read_bytes() == before and load_model(last)
