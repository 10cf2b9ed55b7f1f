"""A run that is killed, stopped or out of disk space ends like one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from spikeformers.cli import main
from spikeformers.errors import StoppedError
from spikeformers.models import read_checkpoint, write_checkpoint
from spikeformers.train import Recipe, fit
from spikeformers.train import loop as loop_module
from spikeformers.transform import _weigh

Small = Callable[..., Recipe]
KILLER = Path(__file__).with_name("killer.py")
KILLS = 20

# Everything that draws random numbers or carries something from step to step.
RESTLESS = [
    "train.epochs=7",
    "train.batch_size=4",
    "train.checkpoint_steps=2",
    "train.evaluate_every=2",
    "train.ema_decay=0.9",
    "train.recalibration_batches=2",
    "augment.crop_padding=2",
    "augment.random_erasing=0.5",
    "augment.mixup=0.5",
    "augment.cutmix=0.5",
]


def assert_same_weights(one: Path, two: Path) -> None:
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = load_file(one / name), load_file(two / name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), f"{key} of {name}"


def send(number: signal.Signals, run: object) -> None:
    """Send a signal to this process and wait until Python has handled it."""
    os.kill(os.getpid(), number)
    while not run.stop:
        time.sleep(0.01)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(small: Small, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(small(*RESTLESS).as_dict()))
    done = subprocess.run(
        [sys.executable, str(KILLER), "0", str(KILLS), str(tmp_path), str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert ends["killed"] == KILLS and ends["finished"] >= 1
    for number in range(ends["finished"]):
        killed = tmp_path / f"killed{number}"
        assert_same_weights(tmp_path / "whole", killed)
        assert not list(killed.glob(".*partial*"))
        assert (killed / "log.jsonl").read_text().count('"resume"') >= 3


def test_synapses_go_on_adding_or_multiplying(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("train.accelerate=fast", "train.epochs=1", f"out={tmp_path / 'run'}")
    fit(recipe, "cpu")
    last = tmp_path / "run" / "last.safetensors"
    tensors, header = read_checkpoint(last)
    assert header["adds"] and all(header["adds"].values())
    # As if it had been decided otherwise, half an epoch ago.
    header["adds"] = dict.fromkeys(header["adds"], False)
    header["progress"].update(step=1, epoch=0)
    write_checkpoint(last, tensors, header)
    monkeypatch.setattr(_weigh, "spike_conv", None)  # nobody adds
    fit(recipe, "cpu")
    assert read_checkpoint(last)[1]["adds"] == header["adds"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_a_clear_line(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    steady = [*RESTLESS, "train.epochs=2", "train.checkpoint_steps=null"]
    whole = small(*steady, f"out={tmp_path / 'whole'}")
    fit(whole)
    update = loop_module._update

    def interrupted(run: object, *arguments: object) -> None:
        update(run, *arguments)
        if run.training.done.step == 2:
            send(number, run)

    halved = small(*steady)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(halved.as_dict()))
    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "_update", interrupted)
        assert main(["train", str(file)]) == 128 + number
    message = capsys.readouterr().err
    assert f"stopped by {number.name} after step 3; saved in" in message
    assert main(["train", str(file)]) == 0
    assert_same_weights(Path(whole.out), Path(halved.out))


def test_handlers_are_put_back(small: Small) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(small("train.epochs=1"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_signal_is_obeyed_at_once(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(run: object, *_: object) -> None:
        send(signal.SIGINT, run)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(loop_module, "_update", twice)
    # A shell starts what runs in its background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(small())
    finally:
        signal.signal(signal.SIGINT, before)


def test_stopping_is_an_error_of_ours(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop_module._update

    def interrupted(run: object, *arguments: object) -> None:
        update(run, *arguments)
        send(signal.SIGTERM, run)

    monkeypatch.setattr(loop_module, "_update", interrupted)
    with pytest.raises(StoppedError, match=r"after step 1; saved in .*last\.safetensors") as caught:
        fit(small())
    assert caught.value.signal == signal.SIGTERM
