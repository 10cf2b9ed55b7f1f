"""A shared run says what the run said, and nothing about the machine's folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import spikeformers as sf
from spikeformers.errors import CheckpointError, ConfigError, DataError, SpikeformersError
from spikeformers.models import describe_model, read_checkpoint, write_checkpoint
from spikeformers.train.recipe import load_recipe
from spikeformers.train.share import share_run
from tests.helpers import enliven

CLASSES = [str(digit) for digit in range(10)]
ENVIRONMENT = {"torch": "2.13.0", "device": "cpu", "device_name": "Some CPU", "threads": 1}
METRICS = {
    "top1": 98.0556,
    "images": 360,
    "top1_last": 97.5,
    "best_epoch": 20,
    "epochs": 26,
    "seconds": 138.0,
    "confusion": [[1]],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path / "secret" / "run"
    overrides = ["train.seed=2", f"out={folder}", f"data.root={tmp_path / 'secret' / 'data'}"]
    recipe = load_recipe("digits", overrides).as_dict()
    recipe["model"]["weights"] = str(tmp_path / "secret" / "before.safetensors")
    recipe["distill"] = {"teacher": str(tmp_path / "secret" / "teacher.safetensors")}
    model = enliven(sf.create_model(recipe["model"]["name"], in_channels=1, num_classes=10))
    header = describe_model(model) | {"recipe": recipe, "anything": "else"}
    header["progress"] = {"classes": CLASSES, "best_epoch": 20, "top1": 98.0556, "epoch": 20}
    write_checkpoint(folder / "best.safetensors", model.state_dict(), header)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    write_log(folder, ENVIRONMENT)
    return folder


def write_log(folder: Path, environment: dict[str, Any]) -> None:
    events = [{"event": "start", "environment": environment}, {"event": "epoch", "epoch": 1}]
    lines = [json.dumps(event) for event in events]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"event":"epo']))


def test_the_best_weights_come_back_with_all_it_takes_to_use_them(
    run: Path, tmp_path: Path
) -> None:
    folder = share_run(run, tmp_path / "shared", license="mit")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
    ]
    tensors = read_checkpoint(run / "best.safetensors")[0]
    model = sf.from_pretrained(folder)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained["classes"] == CLASSES
    assert model.pretrained["timesteps"] == 4
    given = model.pretrained["preprocessing"]
    assert (given["image_size"], given["mean"], given["std"]) == (16, [0.3], [0.35])


def test_the_figure_is_the_one_the_run_wrote(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(share_run(run, tmp_path / "shared") / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("digits", 98.0556)
    assert result.metric_args == {
        "seed": 2,
        "hardware": "Some CPU, threads: 1, PyTorch 2.13.0",
        "command": "spikeformers train recipe.yaml data.root=FOLDER",
    }
    note = "epoch 20 of 26, the best on these held-out images; last epoch 97.50 %"
    for fact in ("98.06", "360", "2.30", note):
        assert fact in card.text
    assert card.data.license is None


def test_the_recipe_trains_again_and_names_no_folder_of_this_machine(
    run: Path, tmp_path: Path
) -> None:
    folder = share_run(run, tmp_path / "shared")
    for file in folder.iterdir():
        assert b"secret" not in file.read_bytes(), file.name
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model"]["weights"] == "before.safetensors"
    assert recipe["distill"] == {"teacher": "teacher.safetensors"}
    recipe["model"]["weights"] = recipe["distill"] = None
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    expected = load_recipe("digits", ["train.seed=2", "out=runs/shared"])
    assert load_recipe(str(tmp_path / "again.yaml")) == expected


def test_several_gpus_are_said(run: Path, tmp_path: Path) -> None:
    gpus = {"torch": "2.13.0", "device": "cuda", "device_name": "GPU", "threads": 8, "ranks": 4}
    write_log(run, gpus)
    text = (share_run(run, tmp_path / "shared") / "README.md").read_text()
    assert "4 x GPU, PyTorch 2.13.0" in text
    assert "torchrun --nproc-per-node 4 -m spikeformers train recipe.yaml" in text


def test_a_run_is_pushed_with_the_card_of_its_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = {}
    monkeypatch.setattr(
        "spikeformers.models.Backbone.push_to_hub",
        lambda _, name, card: pushed.update(name=name, card=card),
    )
    share_run(run, tmp_path / "shared", license="mit", push="owner/name")
    assert pushed["name"] == "owner/name" and pushed["card"]["license"] == "mit"
    assert pushed["card"]["figures"][0]["top1"] == 98.0556


def other_epoch(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({**METRICS, "best_epoch": 24}))


def no_recipe(run: Path) -> None:
    tensors, header = read_checkpoint(run / "best.safetensors")
    write_checkpoint(run / "best.safetensors", tensors, {"model": header["model"]})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda r: (r / "best.safetensors").unlink(), CheckpointError, "no checkpoint"),
        (no_recipe, CheckpointError, "has no recipe"),
        (lambda r: (r / "metrics.json").unlink(), DataError, "has no metrics.json.*finish first"),
        (lambda r: (r / "metrics.json").write_text("[1"), DataError, "metrics.json is damaged"),
        (lambda r: (r / "log.jsonl").unlink(), DataError, "has no log.jsonl"),
        (lambda r: write_log(r, {}), ConfigError, "a figure of the card lacks hardware"),
        (other_epoch, DataError, "is about epoch 24, best.safetensors of epoch 20"),
    ],
)
def test_a_run_that_cannot_be_shared_is_explained(
    run: Path,
    tmp_path: Path,
    spoil: Callable[[Path], Any],
    error: type[SpikeformersError],
    message: str,
) -> None:
    spoil(run)
    with pytest.raises(error, match=message):
        share_run(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
