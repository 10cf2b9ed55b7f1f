"""Run by torchrun in the tests: train recipes one after the other, as one job.

python job.py RECIPE.yaml ...            each process trains all of them
FAIL_AT_STEP=1 python job.py RECIPE.yaml  the second process fails at that step
"""

import os
import sys

import torch

from spikeformers import train
from spikeformers.cli import main
from spikeformers.errors import DataError
from spikeformers.train import loop

torch.set_num_threads(1)


def fail_at(step: int) -> None:
    """Let the second process stumble over its data."""
    update = loop._update

    def stumble(run: object, *arguments: object) -> None:
        if run.training.done.step == step and run.ranks.rank == 1:
            raise DataError("the image seven.png cannot be read")
        update(run, *arguments)

    loop._update = stumble


if __name__ == "__main__":
    if "FAIL_AT_STEP" in os.environ:
        fail_at(int(os.environ["FAIL_AT_STEP"]))
        sys.exit(main(["train", *sys.argv[1:], "--device", "cpu"]))
    with train.joined("cpu"):
        for path in sys.argv[1:]:
            train.fit(train.load_recipe(path), "cpu")
