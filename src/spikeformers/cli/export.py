"""What the verb `export` does: one function per format, found by its name in `FORMATS`."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from spikeformers import data, models
from spikeformers.cli.verbs import Result, open_model
from spikeformers.errors import ConfigError
from spikeformers.train.recipe import recipe_from_dict
from spikeformers.transform import IntegerNetwork


def export(args: argparse.Namespace) -> Result:
    """Write a model for other programs."""
    if args.format not in FORMATS:
        raise ConfigError(
            f"--format {args.format} is unknown: choose from {', '.join(sorted(FORMATS))}"
        )
    for option, owner in OPTIONS.items():
        if args.format != owner and getattr(args, option) is not None:
            raise ConfigError(f"--{option} belongs to --format {owner}, not to {args.format}")
    return FORMATS[args.format](args)


def _onnx(args: argparse.Namespace) -> Result:
    from spikeformers.deploy.onnx import export_onnx

    model, example = _model_and_example(args)
    result = export_onnx(
        model, example, args.output, stream=bool(args.stream), check=args.check is not False
    )
    return result.as_dict(), str(result)


def _nir(args: argparse.Namespace) -> Result:
    from spikeformers.deploy.nir import export_nir

    model, example = _model_and_example(args)
    options = {} if args.dt is None else {"dt": args.dt}
    result = export_nir(model, example, args.output, partial=bool(args.partial), **options)
    return result.as_dict(), str(result)


def _vectors(args: argparse.Namespace) -> Result:
    from spikeformers.deploy.vectors import export_vectors

    network = IntegerNetwork.load(args.model)
    steps = 4 if args.timesteps is None else args.timesteps
    if args.image_size is not None or steps < 1:
        raise ConfigError("--format vectors takes --timesteps of at least 1, and no --image-size")
    image = torch.randn(1, *network.image, generator=torch.Generator().manual_seed(0))
    facts = export_vectors(network, data.direct(image, steps), args.output).as_dict()
    return facts, f"{args.output}: {facts['numbers']:,} numbers, read back and computed again"


FORMATS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "nir": _nir,
    "onnx": _onnx,
    "vectors": _vectors,
}
"""Format -> what writes it."""

OPTIONS = {"check": "onnx", "dt": "nir", "partial": "nir", "stream": "onnx"}
"""Option -> the only format that has it."""


def _model_and_example(args: argparse.Namespace) -> tuple[models.Backbone, Tensor]:
    """Return a model and a random input of the shape to export.

    Where the command says nothing, a training checkpoint says how large its images are and how long
    they are shown; other models get 4 steps of 224x224 pixels.
    """
    model = open_model(args.model).float().eval()
    (height, width), steps = model.image_size or (224, 224), 4
    if Path(args.model).is_file():
        header = models.read_checkpoint(args.model)[1]
        if "recipe" in header:
            recipe = recipe_from_dict(header["recipe"])
            height = width = recipe.data.image_size
            steps = recipe.train.timesteps
    if args.image_size is not None:
        height = width = args.image_size
    if args.timesteps is not None:
        steps = args.timesteps
    if min(height, steps) < 1:
        raise ConfigError(f"--image-size {height} --timesteps {steps}: expected at least 1")
    seeded = torch.Generator().manual_seed(0)
    image = torch.randn(1, model.in_channels, height, width, generator=seeded)
    return model, data.direct(image, steps)
