"""Run by torchrun in the tests: train recipes one after the other, as one job.

python job.py RECIPE.yaml ...            each process trains all of them
FAIL_AT_STEP=1 python job.py RECIPE.yaml  the second process fails at that step
STOP_AT_STEP=1 python job.py RECIPE.yaml  the second process is asked to stop there
"""

import os
import signal
import sys
from collections.abc import Callable

import torch

from spikeformers import train
from spikeformers.cli import main
from spikeformers.errors import DataError
from spikeformers.train import loop

torch.set_num_threads(1)


def at_step(step: int, happens: Callable[[], None]) -> None:
    """Let something happen to the second process."""
    update = loop._update

    def eventful(run: object, *arguments: object) -> None:
        if run.training.done.step == step and run.ranks.rank == 1:
            happens()
        update(run, *arguments)

    loop._update = eventful


def stumble() -> None:
    raise DataError("the image seven.png cannot be read")


def be_stopped() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    for name, happens in (("FAIL_AT_STEP", stumble), ("STOP_AT_STEP", be_stopped)):
        if name in os.environ:
            at_step(int(os.environ[name]), happens)
    if {"FAIL_AT_STEP", "STOP_AT_STEP"} & set(os.environ):
        sys.exit(main(["train", *sys.argv[1:], "--device", "cpu"]))
    with train.joined("cpu"):
        for path in sys.argv[1:]:
            train.fit(train.load_recipe(path), "cpu")
