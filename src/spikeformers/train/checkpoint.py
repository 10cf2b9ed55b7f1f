"""Training checkpoints: one file holds model, optimiser and position, so that it is never torn.

`last.safetensors` is written under a temporary name and renamed. Its weights stand under `model.`,
so that it loads like any other checkpoint; where a moving average is kept, that stands there, and
the weights in training under `raw.`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.errors import CheckpointError, ConfigError, TrainingError
from spikeformers.models import Backbone, describe_model, read_checkpoint, write_checkpoint
from spikeformers.train.distributed import like, whole
from spikeformers.train.prepare import Progress, Training
from spikeformers.train.recipe import Recipe
from spikeformers.transform.accelerate import let_add, which_add

_MODEL = "model."
_RAW = "raw."
_OPTIMIZER = "optimizer."
_GROUPS = "groups."

# Keys that may change between interruption and resumption without changing any number.
_FREE = {"out", "data.root", "data.workers", "train.checkpoint_steps"}


def save_best(path: Path, training: Training, recipe: Recipe) -> None:
    """Write the evaluated weights alone, with the recipe that made them."""
    tensors, header = _whole(training.evaluated.state_dict()), _header(training, recipe)
    if training.ranks.is_first:
        write_checkpoint(path, tensors, header)


def save_last(path: Path, training: Training, recipe: Recipe) -> None:
    """Write everything that the next step needs.

    Raises:
        TrainingError: If a weight is not finite; then the older file stays.
        CheckpointError: If the file cannot be written; the older one stays as well.
    """
    tensors = {f"{_MODEL}{name}": t for name, t in training.evaluated.state_dict().items()}
    if training.average is not None:
        tensors |= {f"{_RAW}{name}": t for name, t in training.model.state_dict().items()}
    tensors |= {f"{_OPTIMIZER}{key}": t for key, t in _optimizer_tensors(training).items()}
    # Sharded tensors are put together by all processes, written by one.
    tensors = _whole(tensors)
    broken = [k for k, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise TrainingError(
            f"{broken[0]} is not finite after step {training.done.step}: lower "
            f"train.learning_rate; {good(path)}"
        )
    header = {
        **_header(training, recipe),
        "model_prefix": _MODEL,
        "scaler": training.scaler.state_dict(),
        "adds": which_add(training.called),
    }
    if training.ranks.is_first:
        write_checkpoint(path, tensors, header)


def good(path: Path) -> str:
    """Say where the last good checkpoint is."""
    return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was saved yet"


def _header(training: Training, recipe: Recipe) -> dict[str, Any]:
    # Each process counts its own images; on resuming, each goes on from an equal share of the sum.
    total = training.ranks.total(torch.tensor(training.done.counts, dtype=torch.float64))
    counts = (total / training.ranks.count).tolist()
    return {
        **describe_model(training.model),
        "recipe": recipe.as_dict(),
        "progress": {**dataclasses.asdict(training.done), "counts": counts},
    }


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in tensors.items()}


@torch.no_grad()
def resume(path: Path, training: Training, recipe: Recipe) -> None:
    """Fill model, average, optimiser and position from `last.safetensors`.

    All processes read the file.

    Raises:
        ConfigError: If the checkpoint was made by a recipe that trains differently.
        CheckpointError: If it is damaged or lacks the optimiser's state.
    """
    tensors, header = read_checkpoint(path)
    changed = differences(header.get("recipe", {}), recipe.as_dict())
    if changed:
        raise ConfigError(
            f"{path} was made with other settings ({'; '.join(changed[:3])}): "
            "give the same ones to resume, or another out= to start anew"
        )
    try:
        training.done = Progress(**header["progress"])
        _fill(training.evaluated, tensors, _MODEL)
        if training.average is not None:
            _fill(training.model, tensors, _RAW)
            training.average.n_averaged.fill_(training.done.step)
        _fill_optimizer(training, tensors)
        training.scaler.load_state_dict(header["scaler"])
        let_add(training.called, header["adds"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks {error}, so training cannot resume from it") from error


def _fill(model: Backbone, tensors: Mapping[str, Tensor], prefix: str) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(like(tensors[f"{prefix}{name}"], tensor))


def _optimizer_tensors(training: Training) -> dict[str, Tensor]:
    """Return the state of each parameter by its name, and what groups count by their number."""
    found = {
        f"{name}.{key}": tensor
        for name, parameter in training.model.named_parameters()
        for key, tensor in training.optimizer.state.get(parameter, {}).items()
    }
    for i, group in enumerate(training.optimizer.param_groups):
        tensors = {key: value for key, value in group.items() if isinstance(value, Tensor)}
        found |= {f"{_GROUPS}{i}.{key}": tensor for key, tensor in tensors.items()}
    return found


def _fill_optimizer(training: Training, tensors: Mapping[str, Tensor]) -> None:
    own = {k.removeprefix(_OPTIMIZER): t for k, t in tensors.items() if k.startswith(_OPTIMIZER)}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in own.items():
        name, _, entry = key.rpartition(".")
        states.setdefault(name, {})[entry] = tensor
    for name, parameter in training.model.named_parameters():
        if parameter.requires_grad and training.done.step:
            training.optimizer.state[parameter] = {
                # A count of steps has no axes, and stays what it is.
                key: like(tensor, parameter) if tensor.ndim else tensor.to(parameter.device)
                for key, tensor in states[name].items()
            }
    for i, group in enumerate(training.optimizer.param_groups):
        group.update(states.get(f"{_GROUPS}{i}", {}))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Return in words what has changed between two recipes and would change a number."""
    found: list[str] = []
    for key in now:
        name = f"{path}{key}"
        if name == "expected" or name in _FREE:
            continue
        if isinstance(now[key], dict) and isinstance(saved.get(key), dict):
            found += differences(saved[key], now[key], f"{name}.")
        elif saved.get(key) != now[key]:
            found.append(f"{name} was {saved.get(key)!r} and is {now[key]!r}")
    return found
