"""What the verbs `audit` and `energy` do: prove on the graph, count on data."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from spikeformers import analysis, data, models, train
from spikeformers.cli.verbs import INPUTS, Result, data_root, open_model, record
from spikeformers.errors import ConfigError
from spikeformers.train.distributed import Ranks
from spikeformers.train.evaluate import open_test_set

GATES = {"mac": {"MAC", "MACint"}, "integer": {"MAC", "MACint", "ACx"}}
"""Verdicts that `audit --fail-on` does not let pass."""

BATCH = 16
"""Samples whose values at all operations are in memory at a time."""


def audit(args: argparse.Namespace) -> Result:
    """Prove which operations are additions; with data, compare the claims with it."""
    model, image = open_model(args.model), INPUTS[args.input]
    if args.verify is None:
        result = analysis.audit(model, _blank(args, model), image=image)
    else:
        with train.joined(args.device) as ranks:
            frames = _test_frames(*_data_to_verify(args), ranks)
            first = next(frames)
            result = analysis.audit(
                model.float().to(ranks.device),
                first[:, :1],
                image=image,
                verify=itertools.chain([first], frames),
            )
    facts, text = result.as_dict(), str(result)
    record(args, facts)
    if args.fail_on is None:
        return facts, text
    failed = [f"{r.path}: {r.verdict}" for r in result.rows if r.verdict in GATES[args.fail_on]]
    if not failed:
        return facts, text
    count = f"{len(failed)} operation{'s' if len(failed) > 1 else ''}"
    return facts | {"failed": failed}, f"{text}\nfailed on {args.fail_on}: {count}"


def _blank(args: argparse.Namespace, model: models.Backbone) -> Tensor:
    """Return an input of the asked shape; the audit does not look at its values."""
    if args.overrides:
        raise ConfigError(f"{args.overrides[0]}: without --verify RECIPE there is no recipe")
    size = model.image_size or (64, 64)
    if args.image_size is not None:
        if args.image_size < 1:
            raise ConfigError(f"--image-size {args.image_size}: expected at least 1")
        size = (args.image_size, args.image_size)
    steps = 2 if args.timesteps is None else args.timesteps
    return data.direct(torch.zeros(1, model.in_channels, *size), steps)


def _data_to_verify(args: argparse.Namespace) -> tuple[train.Recipe, str | None]:
    """Return the recipe that `--verify` names, or a checkpoint's own and the folder it names."""
    if args.image_size is not None or args.timesteps is not None:
        raise ConfigError("--verify takes size and steps from the recipe: change those there")
    if Path(args.verify).is_dir() and not Path(args.model).is_file():
        raise ConfigError(
            f"--verify {args.verify} is a folder, and {args.model} has no recipe to read it: "
            "write --verify RECIPE data.root=FOLDER"
        )
    return _named_data(args.verify, args.overrides, args.model)


def _named_data(
    name: str, overrides: list[str], checkpoint: str
) -> tuple[train.Recipe, str | None]:
    """Return the recipe of this name, or a checkpoint's own and the folder of this name."""
    if Path(name).is_dir():
        if overrides:
            raise ConfigError(f"{overrides[0]}: the folder {name} is read as the checkpoint says")
        return train.load_trained(checkpoint)[1], name
    return train.load_recipe(name, overrides), None


def energy(args: argparse.Namespace) -> Result:
    """Count and price what a checkpoint does on its test split."""
    model, recipe, _ = train.load_trained(args.checkpoint)
    name, *overrides = args.data or [""]
    if name and "=" not in name:
        recipe, root = _named_data(name, overrides, args.checkpoint)
    else:
        root = data_root("energy", args.data)
    with train.joined(args.device) as ranks:
        result = analysis.energy(
            model.float().to(ranks.device),
            _test_frames(recipe, root, ranks),
            args.cost,
            first_layer=args.first_layer,
            integers=args.integers,
        )
    facts = result.as_dict()
    record(args, facts)
    return facts, str(result)


def _test_frames(recipe: train.Recipe, root: str | None, ranks: Ranks) -> Iterator[Tensor]:
    """Yield the test split of a recipe as `[T, B, C, H, W]`."""
    if ranks.count > 1:
        raise ConfigError(f"one process goes through the data, got {ranks.count}")
    _, batches = open_test_set(recipe, root, ranks)
    for images, _ in batches:
        frames = data.over_time(images.to(ranks.device), recipe.train.timesteps)
        yield from torch.split(frames, BATCH, dim=1)
