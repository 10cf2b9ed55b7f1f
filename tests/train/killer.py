"""Run by a test: kill a training run again and again, and let it finish.

    python killer.py SEED KILLS FOLDER RECIPE.yaml

Each attempt is a forked process that runs the same command. Most attempts die by SIGKILL at a
random function call, wherever that is; every third one dies inside a checkpoint write, with half
of the file written. Leaves FOLDER/whole, a run that nobody disturbed, and FOLDER/killed0, ... and
prints how many deaths and finished runs there were as JSON.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from spikeformers.cli import main
from spikeformers.data._torchvision import _torchvision

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(number: int) -> None:
    """Die when Python calls a function for the `number`-th time from now on."""
    left = number

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal left
        left -= event == "call"
        if left == 0:
            die()

    sys.setprofile(count)


def die_in_write(number: int) -> None:
    """Die in the middle of the `number`-th checkpoint."""
    save_file, left = safetensors.torch.save_file, number

    def save_half(tensors: object, path: Path, **options: object) -> None:
        nonlocal left
        save_file(tensors, path, **options)
        left -= 1
        if left == 0:
            Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
            die()

    safetensors.torch.save_file = save_half


def calls_of(command: list[str]) -> int:
    """Return how many calls one whole run makes."""
    made = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal made
        made += event == "call"

    sys.setprofile(count)
    main(command)
    sys.setprofile(None)
    return made


def attempt(command: list[str], prepare: Callable[[], object]) -> int:
    """Run the command in a process of its own; return its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        prepare()
        os._exit(main(command))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    seed, kills, folder, recipe = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    generator = random.Random(seed)
    _torchvision()  # imported before the forks, so that each starts quickly
    read, write = os.pipe()
    if os.fork() == 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.write(write, str(calls_of(["train", recipe, f"out={folder}/whole"])).encode())
        os._exit(0)
    os.wait()
    calls = int(os.read(read, 100))
    killed, finished = 0, 0
    while killed < kills or not finished:
        # A run that ends before it is killed is done; the next one starts anew.
        command = ["train", recipe, f"out={folder}/killed{finished}"]
        if killed == kills:
            death = partial(int)
        elif killed % 3 == 0:
            death = partial(die_in_write, generator.choice((1, 2)))
        else:
            death = partial(die_at_call, generator.randrange(calls // 8))
        end = attempt(command, death)
        assert end in (0, -signal.SIGKILL), end
        killed, finished = killed + (end < 0), finished + (end == 0)
    print(json.dumps({"killed": killed, "finished": finished}))
