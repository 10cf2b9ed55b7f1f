"""What a run folder says, read defensively: files may be absent, cut off by a crash or damaged."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikeformers.errors import DataError

Facts = dict[str, Any]

PROOFS = {"audit.json": "rows", "energy.json": "prices", "chip*.json": "operations"}
"""Files that the verbs of their names leave in a folder -> what they certainly hold."""


@dataclass(frozen=True)
class Run:
    """The files of one run folder.

    Attributes:
        start: Last `start` event of the log: model, parameters, recipe, environment.
        epochs: One `epoch` event per epoch, in order; a resumed epoch replaces the broken-off one.
        events: What interrupted the epochs, in order: resumed, stopped, images skipped.
        unreadable: How many lines of the log a crash has cut off.
        metrics: `metrics.json`.
        inspection: `inspect.json`, or `None` if the model was not inspected.
        arrays: `inspect.npz`.
        proofs: What `audit.json`, `energy.json` and files `chip*.json` hold, by their names.
    """

    start: Facts
    epochs: list[Facts]
    events: list[Facts]
    unreadable: int
    metrics: Facts
    inspection: Facts | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    proofs: dict[str, Facts] = field(default_factory=dict)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: The folder or a file that every run has is missing, or a file is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"there is no run folder {folder}: give the folder that training wrote to")
    for name, maker in (("log.jsonl", "train"), ("metrics.json", "evaluate")):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}: {maker} the model into this folder first")

    log = _read_log(folder / "log.jsonl")
    metrics, proofs = read_json(folder / "metrics.json"), _read_proofs(folder)
    if not all((folder / name).is_file() for name in ("inspect.json", "inspect.npz")):
        return Run(*log, metrics, proofs=proofs)
    inspection = read_json(folder / "inspect.json")
    return Run(*log, metrics, inspection, _read_npz(folder / "inspect.npz"), proofs)


def _read_proofs(folder: Path) -> dict[str, Facts]:
    proofs = {}
    for pattern, key in PROOFS.items():
        for path in sorted(folder.glob(pattern)):
            proofs[path.name] = read_json(path)
            if key not in proofs[path.name]:
                raise DataError(f"{path} has no {key}: let the verb of its name write it anew")
    return proofs


def _read_log(path: Path) -> tuple[Facts, list[Facts], list[Facts], int]:
    start: Facts = {}
    epochs: dict[int, Facts] = {}
    events: list[Facts] = []
    unreadable = 0
    # A cut may fall inside a character, which must not make the other lines unreadable.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            fact = json.loads(line)
        except ValueError:
            unreadable += 1
            continue
        match fact:
            case {"event": "start"}:
                start = fact
            case {"event": "epoch", "epoch": int(epoch)}:
                epochs[epoch] = fact
            case {"event": "skipped" | "resume" | "stopped"}:
                events.append(fact)
    return start, [epochs[epoch] for epoch in sorted(epochs)], events, unreadable


def read_json(path: Path) -> Facts:
    """Read a file that holds one JSON object."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): write it again") from error
    if not isinstance(facts, dict):
        raise DataError(
            f"{path} holds a {type(facts).__name__}, expected an object: write it again"
        )
    return facts


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}): inspect the model again") from error
