"""Recordings of events train, resume, and are looked at by the same loop as images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spikeformers.cli import main
from spikeformers.errors import ConfigError, DataError
from spikeformers.train import Recipe, evaluate_checkpoint, fit, load_recipe
from spikeformers.train import loop as loop_module
from tests.data.writers import random_events, write_gesture_set, write_n_mnist_bin
from tests.train.small import SMALL

EVENTS = [
    *SMALL,
    "data.name=n_mnist",
    "data.mean=[0, 0]",
    "data.std=[1, 1]",
    "model.in_channels=2",
    "augment.rand_augment_ops=1",
    "augment.rand_augment_magnitude=30",
    "augment.mixup=0.5",
    "train.timesteps=3",
]
Small = Callable[..., Recipe]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two recordings of each digit to train on and one to test; it is where events crowd."""
    for folder, count in (("Train", 2), ("Test", 1)):
        for digit in range(10):
            for number in range(count):
                x, y, on, usec = random_events(300, 34, 10 * number + digit)
                path = tmp_path / "events" / folder / str(digit) / f"{number:05}.bin"
                write_n_mnist_bin(path, x, np.where(on == 1, 3 * digit + y % 4, y), on, usec)
    return tmp_path / "events"


@pytest.fixture
def small(recordings: Path, tmp_path: Path) -> Small:
    def make(*overrides: str) -> Recipe:
        where = [f"data.root={recordings}", f"out={tmp_path / 'run'}"]
        return load_recipe("mnist", [*EVENTS, *where, *overrides])

    return make


def test_a_run_trains_and_evaluates(small: Small) -> None:
    recipe = small()
    metrics = fit(recipe)
    assert (metrics["epochs"], metrics["images"], len(metrics["top1_per_step"])) == (2, 10, 3)
    assert metrics["classes"] == list("0123456789")
    evaluated = evaluate_checkpoint(Path(recipe.out) / "best.safetensors")
    assert evaluated["top1"] == metrics["top1"]


def test_gestures_train_at_another_number_of_frames(small: Small, tmp_path: Path) -> None:
    write_gesture_set(tmp_path / "gestures")
    recipe = small(
        "data.name=dvs128_gesture",
        f"data.root={tmp_path / 'gestures'}",
        "model.num_classes=11",
        "train.timesteps=5",
        "train.epochs=1",
    )
    assert len(fit(recipe)["top1_per_step"]) == 5


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(f"out={tmp_path / 'whole'}", "data.workers=1")
    fit(whole)

    halved = small(f"out={tmp_path / 'halved'}")
    save_last = loop_module.save_last

    def stop_after_one(*arguments: object) -> None:
        save_last(*arguments)
        if arguments[1].done.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_last", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        fit(halved)
    monkeypatch.undo()
    torch.rand(7)  # a resumed process has another global generator
    fit(halved)

    expected, found = (load_file(Path(r.out) / "last.safetensors") for r in (whole, halved))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_teacher_of_events_teaches_frames_of_another_size(small: Small, tmp_path: Path) -> None:
    teacher = small("train.epochs=1", "data.image_size=20", f"out={tmp_path / 'teacher'}")
    fit(teacher)
    path = tmp_path / "teacher/last.safetensors"
    distill = f"distill={{teacher: {path}, kind: soft, weight: 0.5, temperature: 2.0}}"
    assert fit(small("train.epochs=1", distill))["loss"] > 0


def test_a_damaged_recording_stops_the_run_or_is_skipped(small: Small, recordings: Path) -> None:
    # An epoch leaves out four of the recordings.
    for digit in range(5):
        (recordings / f"Train/{digit}/00001.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"Train/[0-4]/00001\.bin is truncated"):
        fit(small("train.epochs=1"))
    recipe = small("train.epochs=1", "data.unreadable=skip")
    fit(recipe)
    assert "00001.bin is truncated" in (Path(recipe.out) / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.in_channels=1", "model.in_channels=1, but n_mnist has 2"),
        ("data.mean=[0]", "mean has 1 values, expected one for each of the 2 channels"),
    ],
)
def test_settings_for_images_are_refused(small: Small, override: str, message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        fit(small(override))


def test_the_command_trains_reports_and_predicts(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    where = [f"data.root={recordings}", f"out={out}", "train.epochs=1"]
    assert main(["train", "mnist", *EVENTS, *where]) == 0
    with np.load(out / "inspect.npz") as arrays:
        assert arrays["images"].dtype == np.uint8 and arrays["images"].shape[1:] == (3, 16, 16)
    assert (out / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    file = str(recordings / "Test/6/00000.bin")
    assert main(["predict", str(out / "best.safetensors"), file, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"] == file and len(row["classes"]) == 3
    assert main(["predict", str(out / "best.safetensors"), str(tmp_path / "no.bin")]) == 2
    assert "there is no recording" in capsys.readouterr().err
