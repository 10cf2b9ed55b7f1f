"""Parity data of the published implementations; `case(name)` loads one."""

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.synth import synth_state, synth_tensor

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One configuration of one published model with its reference numbers."""

    name: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / f"{self.name}.npz") as file:
            return dict(file)

    @property
    def source(self) -> str:
        return source(self.facts)

    @property
    def is_sound(self) -> bool:
        """Whether the published forward keeps the samples of a batch apart."""
        return self.facts["batch_independent"]

    def state(self) -> dict[str, np.ndarray]:
        return synth_state(self.facts["manifest"])

    def input(self) -> Tensor:
        """Return the time-first input `[T, B, C, H, W]`."""
        entry = self.facts["input"]
        x = torch.from_numpy(synth_tensor(entry["key"], entry["shape"], entry["kind"]))
        return x.transpose(0, 1) if x.ndim == 5 else x.expand(self.facts["T"], *x.shape)

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))


def source(facts: dict[str, Any]) -> str:
    """Name the official constructor; a file whose model is a graph has none."""
    file, _, graph = facts["file"].partition(" (graph of")
    where = f"{facts['repo']}/{file}"
    return where if graph or facts["callable"][0] == "(" else f"{where}:{facts['callable']}"


def cases(family: str = "*") -> list[Case]:
    """Return the cases of a family, or all."""
    names = sorted(path.stem for path in FOLDER.glob(f"{family}__*.npz"))
    return [Case(name) for name in names]


def published(family: str = "*") -> list[dict[str, Any]]:
    """Return the published full-size models of a family, or all; each names its `family`."""
    found = []
    for path in sorted(FOLDER.glob(f"{family}__published.json.gz")):
        with gzip.open(path, "rt") as file:
            content = json.load(file)
        found += [{"family": content["family"], **entry} for entry in content["models"]]
    return found


def fingerprint(tensor: Tensor, length: int = 10) -> Tensor:
    """Return `[L2 norm, sum, first 8 entries]`, shorter for smaller tensors."""
    flat = tensor.detach().flatten()
    return torch.cat([flat.norm()[None], flat.sum()[None], flat[:8]])[:length]
