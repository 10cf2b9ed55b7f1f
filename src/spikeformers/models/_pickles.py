"""Official checkpoint files: found, unwrapped and read without executing anything in them."""

import argparse
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.errors import CheckpointError

_PLAIN = ("model", "state_dict", "model_state_dict", "net")
_EMA = ("model_ema", "state_dict_ema", "ema", "ema_state_dict")


def read_official_file(path: str | os.PathLike[str], ema: bool = False) -> dict[str, Tensor]:
    """Return the weights in a `.pth` or `.safetensors` file of the authors.

    Training checkpoints are unwrapped, optimiser states left out and `module.` prefixes removed.

    Args:
        path: The file.
        ema: Take the moving average of the weights, where the file holds one beside them.

    Raises:
        CheckpointError: If the file is missing or damaged, holds no weights, or could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    weights = _weights_in(content, (_EMA + _PLAIN) if ema else (_PLAIN + _EMA))
    if weights is None:
        raise CheckpointError(f"{path} holds no weights (names with tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _unpickle(path: Path) -> Any:
    """Load tensors and plain data; argparse's namespace is plain data that training files hold."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # PyTorch warns about pickle protocols other than its own, which read as well.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("GLOBAL ")[-1].split(" was not")[0]
        raise CheckpointError(
            f"{path} asks for more than tensors and plain data ({reason[:80]}), so it could "
            "execute code and is not loaded"
        ) from error
    except (OSError, EOFError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error


def _weights_in(content: Any, wrappers: tuple[str, ...]) -> Mapping[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    for name in wrappers:
        found = _weights_in(content.get(name), wrappers)
        if found is not None:
            return found
    return None
