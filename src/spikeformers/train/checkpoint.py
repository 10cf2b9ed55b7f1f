"""Training checkpoints: one file holds model, optimiser and position, so that it is never torn.

`last.safetensors` is written after every epoch under a temporary name and renamed. Its weights
stand under `model.`, so that it loads like any other checkpoint.
"""

from collections.abc import Mapping
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


def save_best(path: Path, model: Backbone, recipe: Recipe, position: Mapping[str, Any]) -> None:
    """Write the weights alone, with the recipe that made them."""
    header = {**describe_model(model), "recipe": recipe.as_dict(), **position}
    write_checkpoint(path, model.state_dict(), header)


def save_last(
    path: Path,
    model: Backbone,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    position: Mapping[str, Any],
) -> None:
    """Write everything that the next epoch needs."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{_OPTIMIZER}{key}": t for key, t in _optimizer_tensors(model, optimizer).items()}
    header = {**describe_model(model), "recipe": recipe.as_dict(), **position}
    write_checkpoint(path, tensors, {**header, "model_prefix": _MODEL})


def resume(
    path: Path, model: Backbone, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> dict[str, Any]:
    """Fill model and optimiser from `last.safetensors` and return the position.

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
                optimizer.state[parameter] = {
                    key: tensors[prefix + key].to(
                        "cpu" if key == "step" else parameter.device, copy=True
                    )
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}, so training cannot resume from it") from error
    return header


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
