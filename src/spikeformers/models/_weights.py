"""Our checkpoints: one safetensors file with the model's name and overrides in its header.

Nothing in such a file is ever executed. Files are written under a temporary name and renamed, so
that a crash or a full disk never damages what was there.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.models._backbone import Backbone
from spikeformers.models._registry import create_model

_HEADER = "spikeformers"


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON header to `path`, completely or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Imported where it is used: `import spikeformers` needs torch, numpy and PyYAML alone.
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors makes files that only their owner may read; a touched one obeys the umask.
        partial.touch()
        mode = partial.stat().st_mode
        save_file(contiguous, partial, metadata={_HEADER: json.dumps(header)})
        partial.chmod(mode)
        with partial.open("rb") as file:
            # Renamed before its content is on disk, a file could be empty after a power cut.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}") from error


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint that this library wrote.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); "
            "an official .pth file needs 'spikeformers convert' first"
        ) from error
    if header is None:
        raise CheckpointError(f"{path} holds tensors, but was not written by spikeformers")
    return tensors, json.loads(header)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the header entries that rebuild a model."""
    config = getattr(model, "config", None)
    if config is None:
        raise ConfigError("the model was not made by create_model: it has no name to save")
    return {
        "model": {"name": config.name, "overrides": dict(config.overrides)},
        "official_source": getattr(model, "official_source", None),
    }


def rebuild_model(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Backbone:
    """Build the model that a header names and fill it with `tensors`.

    Raises:
        CheckpointError: If the tensors belong to another architecture.
    """
    if "model" not in header:
        raise CheckpointError("the checkpoint names no model")
    named = header["model"]
    model = _empty_model(header)
    problems = _misfits(model.state_dict(), tensors)
    if problems:
        raise CheckpointError(f"the checkpoint is not a {named['name']}: {'; '.join(problems[:5])}")
    model.load_state_dict(dict(tensors), assign=True)
    if header.get("official_source"):
        model.official_source = header["official_source"]
    return model


def _empty_model(header: Mapping[str, Any]) -> Backbone:
    with torch.device("meta"):
        return create_model(header["model"]["name"], **header["model"]["overrides"])


def _misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    return problems + [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save the weights of a model made by `create_model`, with its name and overrides.

    Raises:
        ConfigError: If the model has no registered name.
        CheckpointError: If it was changed since (folded, for example), so that its name would not
            rebuild it; or if the file cannot be written. Nothing is left behind.
    """
    header, tensors = describe_model(model), model.state_dict()
    if problems := _misfits(_empty_model(header).state_dict(), tensors):
        raise CheckpointError(
            f"the model is no longer a plain {header['model']['name']} ({problems[0]}): "
            "save it before folding or changing it"
        )
    write_checkpoint(path, tensors, header)


def load_model(path: str | os.PathLike[str]) -> Backbone:
    """Load a model from a file written by `save_model` or by training, in eval mode.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
    """
    tensors, header = read_checkpoint(path)
    prefix = header.get("model_prefix", "")
    weights = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
    return rebuild_model(weights, header).eval()
