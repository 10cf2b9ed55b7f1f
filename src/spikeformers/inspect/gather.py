"""One look at a trained model, saved as two files that a report can read without the model.

`inspect.json` holds the numbers, `inspect.npz` the arrays (never pickled objects):

    timesteps, classes
    layers[]    name, neurons, rate, rate_per_step, never_fired, always_fired   (shares in 0..1)
    rasters[]   layer, neurons (flat indices), array (its name in the NPZ: bool [neurons, T])
    samples[]   label, steps[]: classes (three best), probabilities             (after 1..T steps)
    NPZ         images: uint8 [B, C, H, W], raster_0, raster_1, ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor, nn

from spikeformers.analysis.firing import evaluating, record_spikes
from spikeformers.errors import InputError

RASTER_NEURONS = 64
TOP = 3


def gather(
    model: nn.Module,
    x: Tensor,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    folder: str | Path,
) -> None:
    """Run a model once on a batch and save what there is to see.

    Args:
        model: `[T, B, C, H, W]` -> per-step logits `[T, B, K]`, with a `readout` over time.
        x: Encoded batch `[T, B, C, H, W]`, on the model's device.
        images: The same samples as a person would see them, uint8 `[B, C, H, W]`, grey or RGB.
        labels: True classes `[B]`.
        classes: Names of the `K` classes.
        folder: Where `inspect.json` and `inspect.npz` go; made if missing.

    Raises:
        InputError: The batch, images, labels and classes do not fit together.
    """
    _check(x, images, labels, classes)
    with evaluating(model), record_spikes(model) as recorded:
        logits = model(x)
        if logits.shape[-1] != len(classes):
            raise InputError(
                f"classes has {len(classes)} names, but the model scores {logits.shape[-1]} "
                "classes: pass the names of the data set that the model was trained on"
            )
        steps = _predictions(model, logits)
    names = [name for name, _ in model.named_modules() if name in recorded]
    chosen = [names[i] for i in _spread(len(names), 3)]
    rasters = [_raster(recorded[name]) for name in chosen]

    facts = {
        "timesteps": len(x),
        "classes": [str(name) for name in classes],
        "layers": [_layer(name, recorded[name]) for name in names],
        "rasters": [
            {"layer": name, "neurons": neurons, "array": f"raster_{i}"}
            for i, (name, (neurons, _)) in enumerate(zip(chosen, rasters, strict=True))
        ],
        "samples": [
            {"label": label, "steps": [step[b] for step in steps]}
            for b, label in enumerate(labels.tolist())
        ],
    }
    arrays = {f"raster_{i}": spikes for i, (_, spikes) in enumerate(rasters)}
    arrays["images"] = images.cpu().numpy()
    _save(Path(folder), facts, arrays)


def _check(x: Tensor, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if x.ndim != 5:
        raise InputError(
            f"x has shape {list(x.shape)}, expected [T, B, C, H, W]: "
            "encode it first, for example encode.direct(x, timesteps=4)"
        )
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise InputError(
            f"images is {images.dtype} {list(images.shape)}, expected uint8 [B, 1 or 3, H, W]: "
            "pass the pictures from before normalisation and encoding"
        )
    if not x.shape[1] == len(images) == len(labels) > 0:
        raise InputError(
            f"x holds {x.shape[1]} samples, images {len(images)}, labels {len(labels)}: "
            "pass one image and one label per sample"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} class "
            "names: pass the names of the data set that the labels come from"
        )


def _layer(name: str, spikes: Tensor) -> dict[str, Any]:
    """Count one layer; a neuron is one place in `[T, B, *place]`, judged over the whole batch."""
    fired = spikes.reshape(*spikes.shape[:2], -1) != 0
    per_step = spikes.flatten(1).mean(1, dtype=torch.float32)
    return {
        "name": name,
        "neurons": fired.shape[2],
        "rate": per_step.mean().item(),
        "rate_per_step": per_step.tolist(),
        "never_fired": (~fired).all(1).all(0).float().mean().item(),
        "always_fired": fired.all(1).all(0).float().mean().item(),
    }


def _raster(spikes: Tensor) -> tuple[list[int], np.ndarray]:
    """Flat indices of some neurons and, for the first sample, when they fired: `[neurons, T]`."""
    fired = spikes[:, 0].reshape(len(spikes), -1) != 0
    neurons = _spread(fired.shape[1], RASTER_NEURONS)
    return neurons, fired[:, neurons].T.cpu().numpy()


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices of `count`, evenly spaced, first and last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _predictions(model: nn.Module, logits: Tensor) -> list[list[dict[str, Any]]]:
    """The best classes of every sample after 1..T steps: `[T][B]`."""
    readout = cast(Callable[[Tensor], Tensor], model.readout)
    return [_best(readout(logits[: t + 1])) for t in range(len(logits))]


def _best(scores: Tensor) -> list[dict[str, Any]]:
    best = scores.float().softmax(-1).topk(min(TOP, scores.shape[-1]))
    return [
        # JSON has no NaN: a diverged model has predictions, but no probabilities.
        {"classes": classes, "probabilities": [p if np.isfinite(p) else None for p in ps]}
        for classes, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _save(folder: Path, facts: dict[str, Any], arrays: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    # The JSON names the arrays, so it comes last: whoever finds it finds them too.
    _replace(folder / "inspect.npz", lambda file: np.savez_compressed(file, **arrays))
    _replace(folder / "inspect.json", lambda file: file.write(text.encode()))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside the old file and rename over it: no reader ever sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            write(file)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
