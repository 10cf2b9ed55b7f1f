"""Training checkpoints: one file holds model, optimiser and position, so that it is never torn.

`last.safetensors` is written after every epoch under a temporary name and renamed. Its weights
stand under `model.`, so that it loads like any other checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.models import Backbone, describe_model, read_checkpoint, write_checkpoint
from spikeformers.train.recipe import Recipe

_MODEL = "model."
_OPTIMIZER = "optimizer."

# Keys that may change between interruption and resumption without changing any number.
_FREE = {"out", "data.root", "data.workers"}


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Finished epochs.
        best_epoch: Epoch of the best held-out accuracy so far.
        top1: That accuracy, in percent.
        top1_last: The held-out accuracy that was measured last.
        seconds: Time spent training, interruptions left out.
        classes: Names of the classes.
    """

    classes: list[str]
    epoch: int = 0
    best_epoch: int = 0
    top1: float | None = None
    top1_last: float | None = None
    seconds: float = 0.0


def save_best(path: Path, model: Backbone, recipe: Recipe, progress: Progress) -> None:
    """Write the weights alone, with the recipe that made them."""
    write_checkpoint(path, model.state_dict(), _header(model, recipe, progress))


def save_last(
    path: Path,
    model: Backbone,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    progress: Progress,
) -> None:
    """Write everything that the next epoch needs."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{_OPTIMIZER}{key}": t for key, t in _optimizer_tensors(model, optimizer).items()}
    header = {**_header(model, recipe, progress), "model_prefix": _MODEL}
    write_checkpoint(path, tensors, header)


def _header(model: Backbone, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    return {
        **describe_model(model),
        "recipe": recipe.as_dict(),
        "progress": dataclasses.asdict(progress),
    }


@torch.no_grad()
def resume(
    path: Path, model: Backbone, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> Progress:
    """Fill model and optimiser from `last.safetensors` and return the progress.

    Raises:
        ConfigError: If the checkpoint was made by a recipe that trains differently.
        CheckpointError: If it is damaged or lacks the optimiser's state.
    """
    tensors, header = read_checkpoint(path)
    differences = _differences(header.get("recipe", {}), recipe.as_dict())
    if differences:
        raise ConfigError(
            f"{path} was made with other settings ({'; '.join(differences[:3])}): "
            "give the same ones to resume, or another out= to start anew"
        )
    weights = {k.removeprefix(_MODEL): t for k, t in tensors.items() if k.startswith(_MODEL)}
    model.load_state_dict(weights)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    try:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = f"{_OPTIMIZER}{names[id(parameter)]}."
                # The moments keep the parameter's memory layout, which fused kernels rely on.
                optimizer.state[parameter] = {
                    "step": tensors[prefix + "step"].to(parameter.device),
                    "exp_avg": torch.empty_like(parameter).copy_(tensors[prefix + "exp_avg"]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[prefix + "exp_avg_sq"]),
                }
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}, so training cannot resume from it") from error
    return Progress(**header["progress"])


def _optimizer_tensors(model: Backbone, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    found: list[str] = []
    for key in now:
        name = f"{path}{key}"
        if name == "expected" or name in _FREE:
            continue
        if isinstance(now[key], dict) and isinstance(saved.get(key), dict):
            found += _differences(saved[key], now[key], f"{name}.")
        elif saved.get(key) != now[key]:
            found.append(f"{name} was {saved.get(key)!r} and is {now[key]!r}")
    return found
