"""Work in a process of its own: whatever happens there, the caller lives and knows."""

import os
import signal
import time
from typing import Any

import pytest
import torch

from spikeformers.errors import ConfigError, StoppedError, TrainingError
from spikeformers.train.alone import alone
from spikeformers.train.log import peak_memory
from spikeformers.train.stop import Stop

CPU = torch.device("cpu")


def remember(megabytes: int) -> dict[str, Any]:
    ballast = torch.ones(megabytes * 2**18)
    peak = peak_memory(CPU)
    assert len(ballast) and peak is not None
    return {"peak": peak, "threads": torch.get_num_threads()}


def fail() -> dict[str, Any]:
    raise ConfigError("nothing fits")


def die() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def rest() -> dict[str, Any]:
    time.sleep(60)
    return {}


@pytest.mark.slow
def test_memory_is_that_of_the_work_alone() -> None:
    ours = remember(600)["peak"]
    theirs = alone(Stop(), remember, 100)
    assert 100 < theirs["peak"] < ours - 300
    assert theirs["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_failure_and_death_are_told() -> None:
    with pytest.raises(TrainingError, match=r"^nothing fits$"):
        alone(Stop(), fail)
    with pytest.raises(TrainingError, match="was killed by signal 9"):
        alone(Stop(), die)


@pytest.mark.slow
def test_a_stop_is_passed_on() -> None:
    stop = Stop()
    stop.signal = signal.SIGTERM
    with pytest.raises(StoppedError, match="stopped by SIGTERM") as caught:
        alone(stop, rest)
    assert caught.value.signal == signal.SIGTERM


def test_a_peak_never_falls() -> None:
    peak = peak_memory(CPU)
    assert peak is not None and peak > 50
    assert peak_memory(CPU, so_far=1e9) == 1e9
    assert peak_memory(CPU, so_far=1.0) >= peak
