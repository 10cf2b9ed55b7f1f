"""`spikeformers export`: formats, options, sentences, and nothing left behind."""

import json
from pathlib import Path

import pytest
import torch

from spikeformers.cli import main
from spikeformers.cli.export import FORMATS
from spikeformers.models import create_model, describe_model, write_checkpoint
from spikeformers.train import load_recipe

pytestmark = pytest.mark.compile

TINY = ["export", "spikformer_tiny", "--image-size", "16", "--timesteps", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint: weights and the recipe that made them."""
    torch.manual_seed(0)
    model = create_model("spikformer_tiny", in_channels=1)
    recipe = load_recipe("digits", ["model.name=spikformer_tiny", "train.timesteps=2"])
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    header = {**describe_model(model), "recipe": recipe.as_dict(), "progress": {}}
    write_checkpoint(path, model.state_dict(), header)
    return path


def test_a_training_checkpoint_knows_its_shape(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(checkpoint), "--format", "onnx", "-o", str(tmp_path / "m.onnx")]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["inputs"] == {"image": [2, "batch", 1, 16, 16]}
    assert facts["check"]["layers"] <= 1e-5
    assert facts["bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_other_shapes_and_the_streaming_form_can_be_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(checkpoint), "--format", "onnx", "-o", str(tmp_path / "m.onnx")]
    shape = ["--timesteps", "1", "--image-size", "8"]
    assert main([*arguments, *shape, "--stream", "--no-check"]) == 0
    printed = capsys.readouterr().out
    assert "image [1, 'batch', 1, 8, 8]" in printed and "before." in printed
    assert printed.endswith("not checked\n")


def test_islands_are_written_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "islands"
    assert main([*TINY, "--format", "nir", "--partial", "--dt", "1", "-o", str(folder)]) == 0
    index = json.loads((folder / "index.json").read_text())
    assert index["dt"] == 1
    files = {island["file"] for island in index["islands"].values()}
    assert {path.name for path in folder.iterdir()} == {*files, "index.json", "constants.npz"}
    first, *reasons = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder}: {len(files)} islands of ")
    assert any("takes a maximum" in reason for reason in reasons)


def test_every_format_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in FORMATS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*TINY, "--format", "onx"], "--format onx is unknown: choose from nir, onnx"),
        ([*TINY, "--format", "nir", "--stream"], "--stream belongs to --format onnx, not to nir"),
        ([*TINY, "--format", "nir", "--no-check"], "--check belongs to --format onnx"),
        ([*TINY, "--format", "onnx", "--partial"], "--partial belongs to --format nir"),
        ([*TINY, "--format", "nir", "--dt", "-1"], "dt=-1.0: expected a positive number"),
        ([*TINY, "--format", "nir"], "takes a maximum, which NIR cannot express"),
        ([*TINY[:3], "0", "--format", "onnx"], "--image-size 0 --timesteps 4: expected"),
        ([*TINY[:-1], "0", "--format", "onnx"], "--image-size 16 --timesteps 0: expected"),
        (["export", "spikformer_tinny", "--format", "onnx"], "did you mean 'spikformer_tiny'"),
        (["export", "none.safetensors", "--format", "onnx"], "no checkpoint none.safetensors"),
        (["export", "stas_tiny", "--image-size", "32", "--format", "onnx"], "no fixed graph"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and sentence in printed.err
    assert list(tmp_path.iterdir()) == []
