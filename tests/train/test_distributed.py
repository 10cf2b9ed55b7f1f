"""Many processes train what one would: the same weights, statistics and borders."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from spikeformers.layers import RepConv
from spikeformers.models import load_model, read_checkpoint
from spikeformers.train import Recipe, fit

Small = Callable[..., Recipe]
JOB = Path(__file__).with_name("job.py")

# Three steps of eight images each; every rank needs a different part of them.
THREE_STEPS = ["train.epochs=3", "train.batch_size=16", "train.precision=float64"]


def job(*arguments: str, processes: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", str(JOB), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path), **variables},
    )


def write(recipe: Recipe, path: Path) -> str:
    path.write_text(yaml.safe_dump(recipe.as_dict()))
    return str(path)


@pytest.mark.slow
def test_two_processes_equal_one(small: Small, tmp_path: Path) -> None:
    variants = {
        "copied": [],
        "sharded": ["train.sharded=true"],
        "accelerated": ["train.accelerate=fast"],
        "accelerated_sharded": ["train.accelerate=low", "train.sharded=true"],
        "averaged": ["train.ema_decay=0.9", "train.recalibration_batches=1"],
        "sharded_average": ["train.sharded=true", "train.ema_decay=0.9"],
    }
    recipes = {
        name: small(*THREE_STEPS, f"out={tmp_path / name}", *changes)
        for name, changes in variants.items()
    }
    files = [write(recipe, tmp_path / f"{name}.yaml") for name, recipe in recipes.items()]
    done = job(*files)
    assert done.returncode == 0, done.stderr
    for name, changes in variants.items():
        alone = [change for change in changes if change != "train.sharded=true"]
        reference = small(*THREE_STEPS, f"out={tmp_path / name}_alone", *alone)
        fit(reference, "cpu")
        paths = [Path(r.out) / "last.safetensors" for r in (reference, recipes[name])]
        (expected, header), (found, _) = map(read_checkpoint, paths)
        assert header["progress"]["step"] == 3
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-9, msg=key)
        for one, two in zip(*(borders(path) for path in paths), strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


def borders(path: Path) -> list[torch.Tensor]:
    convs = [m for m in load_model(path).modules() if isinstance(m, RepConv)]
    assert convs
    # What the border norm makes of the zero padding.
    return [conv.border_norm.affine_map()[1] for conv in convs]


def test_a_stopped_job_counts_the_images_of_all_processes(small: Small, tmp_path: Path) -> None:
    half_an_epoch = ["train.epochs=1", "train.batch_size=4", "train.precision=float64"]
    recipe = small(*half_an_epoch, f"out={tmp_path / 'run'}")
    file = write(recipe, tmp_path / "recipe.yaml")
    stopped = job(file, STOP_AT_STEP="2")
    assert stopped.returncode != 0 and "saved in" in stopped.stderr
    header = read_checkpoint(Path(recipe.out) / "last.safetensors")[1]
    assert header["progress"]["step"] == 3 and header["progress"]["seconds"] > 0
    done = job(file)
    assert done.returncode == 0, done.stderr
    whole = small(*half_an_epoch, f"out={tmp_path / 'whole'}")
    fit(whole, "cpu")
    (halved, expected) = (
        json.loads((Path(r.out) / "log.jsonl").read_text().splitlines()[-1])
        for r in (recipe, whole)
    )
    assert halved["train_top1"] == pytest.approx(expected["train_top1"])
    assert halved["loss"] == pytest.approx(expected["loss"], abs=1e-9)


def test_the_first_error_is_shown_once_and_ends_the_job(small: Small, tmp_path: Path) -> None:
    recipe = small(*THREE_STEPS, f"out={tmp_path / 'run'}")
    done = job(write(recipe, tmp_path / "recipe.yaml"), FAIL_AT_STEP="1")
    assert done.returncode != 0
    assert done.stderr.count("the image seven.png cannot be read") == 1
    # What the other process says for lack of the first one would hide the cause.
    assert "Connection" not in done.stderr and "rank0]" not in done.stderr


def test_a_bad_recipe_is_complained_of_once(small: Small, tmp_path: Path) -> None:
    recipe = small("train.batch_size=3", f"out={tmp_path / 'run'}")
    done = job(write(recipe, tmp_path / "recipe.yaml"), FAIL_AT_STEP="-1")
    assert done.returncode != 0
    assert done.stderr.count("train.batch_size=3 is not divisible by 2 processes") == 1


def test_a_busy_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}
        done = subprocess.run(
            [sys.executable, "-m", "spikeformers", "train", "digits", "--device", "cpu"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path), **alone},
        )
    assert done.returncode == 2
    assert f"port {port} is in use by another program" in done.stderr
    assert "Traceback" not in done.stderr
