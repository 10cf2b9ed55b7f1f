"""What the verb `async` does: run checkpoints without their clock, on their test images."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers import data, deploy, report, train
from spikeformers.cli.verbs import Result, data_root
from spikeformers.errors import ConfigError
from spikeformers.train.evaluate import open_test_set
from spikeformers.train.log import write_json


def run_without_clock(args: argparse.Namespace) -> Result:
    """Compare asynchronous runs with the clocked one, and draw the agreement."""
    checkpoints = [word for word in args.checkpoints if "=" not in word]
    root = data_root("async", [w for w in [*args.checkpoints, *args.overrides] if "=" in w])
    if not checkpoints:
        raise ConfigError("async needs a checkpoint: best.safetensors or last.safetensors of a run")
    if args.images < 1:
        raise ConfigError(f"--images {args.images}: expected at least 1")
    models = [_study(args, checkpoint, root) for checkpoint in checkpoints]
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"models": [facts for facts, _ in models]}
    write_json(folder / "async.json", facts)
    picture = report.draw_jitter(folder)
    return facts, "\n\n".join([*(text for _, text in models), f"picture: {picture}"])


def _study(args: argparse.Namespace, checkpoint: str, root: str | None) -> tuple[Any, str]:
    model, recipe, _ = train.load_trained(checkpoint)
    with train.joined(args.device) as ranks:
        _, batches = open_test_set(recipe, root, ranks)
        images, labels = _first(args.images, batches)
        result = deploy.jitter_study(
            model.float().to(ranks.device),
            data.over_time(images.to(ranks.device), recipe.train.timesteps),
            args.jitter,
            labels.to(ranks.device),
            ticks=args.ticks,
            seed=args.seed,
        )
    name = recipe.model.name
    named = {"model": name, "checkpoint": checkpoint, "data": recipe.data.name}
    return named | result.as_dict(), f"{name} on {result.samples} images\n{result}"


def _first(count: int, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the first images of a split, and their labels."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for some, their_labels in batches:
        images.append(some)
        labels.append(their_labels)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]
