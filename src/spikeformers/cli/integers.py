"""What the verb `quantize` does: write the integer network of a checkpoint, and compare the two."""

import argparse
import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from spikeformers import data, train
from spikeformers.cli.verbs import Result, data_root
from spikeformers.errors import ConfigError
from spikeformers.tasks import Classification
from spikeformers.train.evaluate import open_test_set
from spikeformers.transform import IntegerNetwork
from spikeformers.transform import quantize as quantize_model

CALIBRATION = 32
"""Images of the test split that `quantize` runs, and that a new neuron's norm sees; no labels."""


@torch.no_grad()
def quantize(args: argparse.Namespace) -> Result:
    """Write an integer network, and say what it loses."""
    root = data_root("quantize", args.overrides)
    if args.images is not None and args.images < 1:
        raise ConfigError(f"--images {args.images}: expected at least 1")
    model, recipe, progress = train.load_trained(args.checkpoint)
    model.float()
    task = Classification(recipe.train.timesteps)
    before, after = (task.metric(len(progress["classes"])) for _ in range(2))
    additions: Counter[str] = Counter()
    with train.joined("cpu") as ranks:
        if ranks.count > 1:
            raise ConfigError(f"one process quantises, got {ranks.count}")
        batches = _first(args.images, open_test_set(recipe, root, ranks)[1])
        first = next(batches)
        with contextlib.redirect_stdout(sys.stderr):
            network = quantize_model(
                model,
                data.over_time(first[0], task.timesteps)[:, :CALIBRATION],
                neuron_between=args.neuron_between,
                merge=args.merge,
            )
        for images, labels in itertools.chain([first], batches):
            scores, performed = network.run(data.over_time(images, task.timesteps))
            before.update(task.predict(model, images), labels)
            after.update(scores.double().cumsum(0), labels)
            additions.update(performed)
    network.save(args.output)
    return _facts(args, network, before.compute(), after.compute(), sum(additions.values()))


def _first(
    images: int | None, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches until so many images have come."""
    left = sys.maxsize if images is None else images
    for inputs, labels in batches:
        yield inputs[:left], labels[:left]
        left -= len(labels)
        if left <= 0:
            return


def _facts(
    args: argparse.Namespace,
    network: IntegerNetwork,
    before: dict[str, float],
    after: dict[str, float],
    additions: int,
) -> Result:
    facts = {
        "output": args.output,
        "images": after["images"],
        "top1_before": before["top1"],
        "top1_after": after["top1"],
        "additions": additions / after["images"],
        "operations": dict(Counter(operation.kind for operation in network.operations)),
        "fraction_bits": network.fraction_bits,
    }
    text = (
        f"{network.summary()}\n"
        f"{facts['additions']:,.0f} additions per image\n"
        f"top-1 {before['top1']:.2f} % before, {after['top1']:.2f} % after, on {after['images']} "
        f"images\n{args.output}"
    )
    return facts, text
