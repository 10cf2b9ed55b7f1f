"""Pre-training by masked autoencoding: resumes bit for bit, and fine-tuning starts from it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spikeformers.cli import main
from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.models import create_model, load_model
from spikeformers.train import (
    Recipe,
    compare,
    evaluate_checkpoint,
    fit,
    load_recipe,
    load_trained,
    share_run,
)
from spikeformers.train import loop as loop_module
from spikeformers.train.evaluate import start_from
from spikeformers.train.recipe import PretrainSection

Small = Callable[..., Recipe]
DECODER = PretrainSection(mask_ratio=0.5, patch=16, decoder_dim=8, decoder_depth=1, decoder_heads=2)
# Everything that draws random numbers or carries something from step to step.
RESTLESS = ["train.ema_decay=0.9", "train.accumulate=2", "augment.crop_padding=2"]
BACKBONE = ["model.name=sdt_v3_large_tiny", "data.image_size=32", "train.timesteps=1"]


@pytest.fixture
def labelled(small: Small) -> Small:
    """Return a function that makes a small recipe for the tiny large E-SpikeFormer."""
    return lambda *overrides: small(*BACKBONE, "model.overrides={}", *overrides)


@pytest.fixture
def unlabelled(labelled: Small) -> Small:
    """The same, for pre-training."""

    def make(*overrides: str, **changes: Any) -> Recipe:
        free = ["train.label_smoothing=0", "train.recalibration_batches=0"]
        pretrain = dataclasses.replace(DECODER, **changes)
        return dataclasses.replace(labelled(*free, *overrides), pretrain=pretrain)

    return make


@pytest.fixture
def pretrained(unlabelled: Small, tmp_path: Path) -> Path:
    recipe = unlabelled("train.epochs=1", f"out={tmp_path / 'pretrained'}")
    fit(recipe)
    return Path(recipe.out) / "best.safetensors"


def epochs_of(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (Path(recipe.out) / "log.jsonl").read_text().splitlines()
    timed = {"seconds", "images_per_second"}
    entries = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in entry.items() if k not in timed}
        for entry in entries
        if entry["event"] == "epoch"
    ]


def test_the_best_epoch_has_the_lowest_error(unlabelled: Small) -> None:
    recipe = unlabelled("train.epochs=3")
    metrics = fit(recipe)
    entries = epochs_of(recipe)
    errors = [entry["held_out_loss"] for entry in entries]
    assert metrics["loss"] == min(errors) and metrics["best_epoch"] == 1 + errors.index(min(errors))
    assert metrics["images"] == 10 and "top1" not in metrics
    assert all(entry["top1"] is entry["train_top1"] is None for entry in entries)
    best = Path(recipe.out) / "best.safetensors"
    assert evaluate_checkpoint(best)["loss"] == metrics["loss"]
    for take in (load_trained, lambda _: share_run(recipe.out, best.parent / "shared")):
        with pytest.raises(CheckpointError, match="pre-trained without labels and knows no class"):
            take(best)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    unlabelled: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unlabelled(*RESTLESS, f"out={tmp_path / 'whole'}")
    fit(whole)

    steps = "train.checkpoint_steps=1"
    halved = unlabelled(*RESTLESS, steps, f"out={tmp_path / 'halved'}")
    save_last = loop_module.save_last

    def stop_within_an_epoch(*arguments: Any) -> None:
        save_last(*arguments)
        if arguments[1].done.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_last", stop_within_an_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(halved)
    monkeypatch.undo()
    torch.rand(7)  # a resumed process has another global generator
    fit(halved)

    for name in ("best.safetensors", "last.safetensors"):
        expected, found = (load_file(Path(r.out) / name) for r in (whole, halved))
        assert expected.keys() == found.keys()
        assert any("head.predict" in key for key in expected)
        for key in expected:
            assert torch.equal(expected[key], found[key]), key
    assert epochs_of(whole) == epochs_of(halved)


def test_recomputation_changes_no_number(unlabelled: Small, tmp_path: Path) -> None:
    """In the backward pass the norms still see what was seen in the forward pass."""
    runs = [
        unlabelled("train.epochs=1", f"train.recompute={x}", f"out={tmp_path / x}")
        for x in ("false", "true")
    ]
    weights = [load_file(Path(r.out) / "last.safetensors") for r in runs if fit(r)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_other_precisions_train(unlabelled: Small, precision: str) -> None:
    recipe = unlabelled("train.epochs=1", f"train.precision={precision}")
    assert 0 < fit(recipe)["loss"] < 2


def test_fine_tuning_starts_from_it(labelled: Small, pretrained: Path, tmp_path: Path) -> None:
    recipe = labelled(
        "train.epochs=1",
        "train.learning_rate=1.0e-9",
        "train.weight_decay=0",
        "train.ema_decay=null",
        f"model.weights={pretrained}",
        f"out={tmp_path / 'tuned'}",
    )
    assert 0 <= fit(recipe)["top1"] <= 100
    before = load_model(pretrained).state_dict()
    after = load_model(Path(recipe.out) / "last.safetensors").state_dict()
    for name, tensor in after.items():
        if not name.startswith("head.") and "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def test_another_stem_is_refused(pretrained: Path) -> None:
    wider = create_model("sdt_v3_large_tiny", in_channels=1, dims=(8, 12, 16, 24))
    with pytest.raises(CheckpointError, match=r"is of another backbone: stages\.1\.blocks\.0"):
        start_from(wider, pretrained)


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (["train.label_smoothing=0.1"], {}, "train.label_smoothing is set, but does not apply to"),
        (["augment.mixup=0.8"], {}, "augment.mixup is set, but does not apply to pre-training"),
        (["train.recalibration_batches=2"], {}, "train.recalibration_batches is set"),
        ([], {"patch": 8}, "pretrain.patch=8, but a token of sdt_v3_large_tiny stands for 16"),
        ([], {"decoder_dim": 6}, "decoder_dim=6: expected a multiple of 4"),
        ([], {"decoder_heads": 3}, "decoder_dim=8: expected a multiple of 4.* decoder_heads=3"),
        (["data.image_size=16"], {}, "16x16 have 1 tokens of 16x16 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(
    unlabelled: Small, overrides: list[str], changes: dict[str, int], message: str
) -> None:
    with pytest.raises(Exception, match=message) as caught:
        fit(unlabelled(*overrides, **changes))
    assert caught.type.__module__ == "spikeformers.errors"


def test_only_classifiers_are_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pre-trains without labels: compare classifiers only"):
        compare(["sdt_v3_large_tiny"], "imagenet/sdt_v3_large_83m_pretrain", tmp_path)


def test_ranges_are_checked(unlabelled: Small, tmp_path: Path) -> None:
    content = unlabelled().as_dict()
    content["pretrain"]["mask_ratio"] = 1.0
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"pretrain\.mask_ratio=1\.0: expected 0\.01 to 0\.99"):
        load_recipe(str(path))


def test_the_command_line_trains_evaluates_and_reports(
    unlabelled: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = unlabelled("train.epochs=1")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.as_dict()))
    assert main(["train", str(file)]) == 0
    assert "of hidden pixels (epoch 1 of 1)" in capsys.readouterr().out
    assert main(["eval", str(Path(recipe.out) / "best.safetensors")]) == 0
    assert "of hidden pixels on 10 images of mnist" in capsys.readouterr().out
    assert main(["report", recipe.out]) == 0
    page = (Path(recipe.out) / "report.html").read_text()
    assert "Learning rate by epoch" in page and "Top-1 accuracy by epoch" not in page
