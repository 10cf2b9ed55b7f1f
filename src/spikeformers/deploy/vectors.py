"""Test vectors: an integer network and what it does on some images, as plain files.

A hardware test bench reads the weights, feeds the image, and compares every result of every step,
bit by bit. `docs/reference/vectors.md` describes the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeformers.deploy._files import new_path
from spikeformers.errors import ExportError
from spikeformers.transform import IntegerNetwork
from spikeformers.transform.integer import Operation

__all__ = ["Vectors", "check_vectors", "export_vectors", "read_vectors"]

FORMAT = {"format": "integer-network-vectors", "version": 1}


@dataclass(frozen=True)
class Vectors:
    """What a folder of test vectors holds.

    Attributes:
        network: The integer network.
        image: What it was shown, real numbers `[T, B, C, H, W]`.
        values: Name of an operation -> its results, integers `[T, B, ...]`.
        membranes: Name of a neuron -> its membranes after each step, `[T, B, ...]`.
    """

    network: IntegerNetwork
    image: Tensor
    values: dict[str, Tensor]
    membranes: dict[str, Tensor]

    def as_dict(self) -> dict[str, Any]:
        """Return what is in it as JSON can hold it."""
        numbers = sum(t.numel() for t in (*self.values.values(), *self.membranes.values()))
        return {
            "operations": len(self.network.operations),
            "timesteps": len(self.image),
            "samples": self.image.shape[1],
            "numbers": numbers,
        }


def export_vectors(network: IntegerNetwork, x: Tensor, path: str | os.PathLike[str]) -> Vectors:
    """Write an integer network and what it does on some images; then read it back and check it.

    Args:
        network: From `spikeformers.quantize`.
        x: Encoded images `[T, B, C, H, W]`, a few: every result of every step is kept.
        path: The folder to write; it must be new. It is written completely or not at all.

    Raises:
        ExportError: If there is something of that name.
        InputError: If the images have another shape than the network's.
    """
    steps = list(network.steps(x))
    names = [operation.name for operation in network.operations]
    values = {name: torch.stack([step.values[name] for step in steps]) for name in names}
    neurons = steps[0].membranes
    membranes = {name: torch.stack([step.membranes[name] for step in steps]) for name in neurons}
    vectors = Vectors(network, x.detach().cpu().double(), values, membranes)
    with new_path(path) as folder:
        _write(vectors, folder)
        check_vectors(folder)
    return vectors


def _write(vectors: Vectors, folder: Path) -> None:
    for name in ("tensors", "values", "membranes"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "image.npy", vectors.image.numpy())
    entries = []
    for operation in vectors.network.operations:
        for key, tensor in operation.tensors.items():
            np.save(folder / "tensors" / f"{operation.name}.{key}.npy", tensor.numpy())
        is_spiking = operation.kind == "neuron"
        result = vectors.values[operation.name].to(torch.uint8 if is_spiking else torch.int32)
        np.save(folder / "values" / f"{operation.name}.npy", result.numpy())
        if is_spiking:
            membrane = vectors.membranes[operation.name].to(torch.int32)
            np.save(folder / "membranes" / f"{operation.name}.npy", membrane.numpy())
        fields = {f.name: getattr(operation, f.name) for f in dataclasses.fields(operation)}
        entries.append(fields | {"tensors": sorted(operation.tensors)})
    manifest = {
        **FORMAT,
        "image": vectors.network.image,
        "fraction_bits": vectors.network.fraction_bits,
        "output": vectors.network.operations[-1].name,
        "timesteps": len(vectors.image),
        "samples": vectors.image.shape[1],
        "operations": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Read a folder of test vectors; nothing in it is executed.

    Raises:
        ExportError: If a file is missing or damaged, or the folder is of another kind.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if any(manifest.get(key) != value for key, value in FORMAT.items()):
            raise ExportError(f"{folder} holds no test vectors: expected {FORMAT} in manifest.json")
        operations = tuple(_operation(entry, folder) for entry in manifest["operations"])
        network = IntegerNetwork(operations, tuple(manifest["image"]), manifest["fraction_bits"])
        values = {op.name: _load(folder / "values" / f"{op.name}.npy") for op in operations}
        membranes = {
            op.name: _load(folder / "membranes" / f"{op.name}.npy")
            for op in operations
            if op.kind == "neuron"
        }
        return Vectors(network, _load(folder / "image.npy"), values, membranes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder} is damaged or holds no test vectors: {error}") from error


def _operation(entry: dict[str, Any], folder: Path) -> Operation:
    name = entry["name"]
    tensors = {key: _load(folder / "tensors" / f"{name}.{key}.npy") for key in entry["tensors"]}
    lists = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    return Operation(**lists | {"tensors": tensors})


def _load(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def check_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Read a folder of test vectors, run its network, and compare every number bit by bit.

    Raises:
        ExportError: If a number differs, named with its operation and step, or a file is damaged.
    """
    vectors = read_vectors(path)
    for place, expected, actual in _pairs(vectors):
        if not torch.equal(expected.long(), actual.long()):
            count = int((expected.long() != actual.long()).sum())
            raise ExportError(f"{path}: {count} numbers differ from the network's at {place}")
    return vectors


def _pairs(vectors: Vectors) -> Iterator[tuple[str, Tensor, Tensor]]:
    for t, step in enumerate(vectors.network.steps(vectors.image)):
        for operation in vectors.network.operations:
            name = operation.name
            yield f"values/{name}.npy, step {t}", vectors.values[name][t], step.values[name]
            if name in vectors.membranes:
                place = f"membranes/{name}.npy, step {t}"
                yield place, vectors.membranes[name][t], step.membranes[name]
