"""A machine that is too small says what to lower."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from spikeformers.errors import ConfigError, TrainingError
from spikeformers.train import Recipe, fit
from spikeformers.train import loop as loop_module
from spikeformers.train.limits import check_threads, within_memory

Small = Callable[..., Recipe]


def test_too_many_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(6), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    check_threads(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    said = "OMP_NUM_THREADS: 2 processes of 4 threads .* 6 cores here: expected 3 threads or fewer"
    with pytest.raises(ConfigError, match=said):
        check_threads(torch.device("cpu"))
    check_threads(torch.device("meta"))


def test_the_loop_looks_at_the_threads(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    with pytest.raises(ConfigError, match="1000 processes"):
        fit(small())


def test_a_full_memory_says_what_needs_less(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(loop_module, "_update", fill)
    said = r"out of memory with 8 images .* train.accumulate=1 .* train.accelerate=low"
    with pytest.raises(TrainingError, match=said):
        fit(small())
    with pytest.raises(TrainingError) as error:
        fit(small("train.accelerate=low"))
    assert "keeps less" not in str(error.value)


def test_other_errors_stay_as_they_are(small: Small) -> None:
    with pytest.raises(RuntimeError, match="shapes"), within_memory(small().train):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts page faults as Linux does")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: large tensors fault their pages in once, not at every use."""
    program = """
import resource, torch
from spikeformers.train.limits import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
handed_back = faults()
keep_freed_memory()
kept = [faults() for _ in range(4)][-1]
print(handed_back, kept)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    handed_back, kept = map(int, done.stdout.split())
    assert kept < 100 < handed_back
