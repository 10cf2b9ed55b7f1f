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
        return f"{self.facts['repo']}/{self.facts['file']}:{self.facts['callable']}"

    def state(self) -> dict[str, np.ndarray]:
        return synth_state(self.facts["manifest"])

    def input(self) -> Tensor:
        """Return the time-first input `[T, B, C, H, W]`."""
        entry = self.facts["input"]
        x = torch.from_numpy(synth_tensor(entry["key"], entry["shape"], entry["kind"]))
        return x.transpose(0, 1) if x.ndim == 5 else x.expand(self.facts["T"], *x.shape)

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))


def cases(family: str) -> list[Case]:
    """Return the cases of a family."""
    names = sorted(path.stem for path in FOLDER.glob(f"{family}__*.npz"))
    return [Case(name) for name in names]


def published(family: str) -> list[dict[str, Any]]:
    """Return the published full-size models of a family."""
    with gzip.open(FOLDER / f"{family}__published.json.gz", "rt") as file:
        return json.load(file)["models"]


def fingerprint(tensor: Tensor, length: int = 10) -> Tensor:
    """Return `[L2 norm, sum, first 8 entries]`, shorter for smaller tensors."""
    flat = tensor.detach().flatten()
    return torch.cat([flat.norm()[None], flat.sum()[None], flat[:8]])[:length]
