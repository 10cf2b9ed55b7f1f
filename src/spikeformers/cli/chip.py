"""What the verb `chip` does: list the chips that are known, or check a model against one."""

import argparse

import torch

from spikeformers import data, deploy
from spikeformers.cli.verbs import INPUTS, Result, open_model, record
from spikeformers.errors import ConfigError


def chip(args: argparse.Namespace) -> Result:
    """List chips, or check a model."""
    if args.action == "list":
        chips = deploy.list_chips()
        return chips, "\n".join(f"{name:14} {title}" for name, title in chips.items())
    if args.model is None or args.chip is None:
        raise ConfigError("chip check needs a model and --chip NAME: `chip list` names them")
    profile = deploy.load_chip(args.chip)
    model = open_model(args.model)
    size = model.image_size or (64, 64)
    if args.image_size is not None:
        if args.image_size < 1:
            raise ConfigError(f"--image-size {args.image_size}: expected at least 1")
        size = (args.image_size, args.image_size)
    image = data.direct(torch.zeros(1, model.in_channels, *size), 1)
    report = deploy.check(model, image, profile, image=INPUTS[args.input])
    facts = report.as_dict()
    record(args, facts)
    failed = [f"{violation.path}: {violation.limit}" for violation in report.violations]
    return facts | ({"failed": failed} if failed else {}), str(report)
