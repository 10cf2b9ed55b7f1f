"""One look at a trained model, saved as two files that a report can read without the model.

`inspect.json` holds the numbers, `inspect.npz` the arrays (never pickled objects) that it names:

    timesteps, classes
    looked_at    images, right: how many samples were run, and how many the model got right
    layers[]     name, neurons, rate, rate_per_step, never_fired, always_fired: over all of them
    samples[]    index (in the batch), label, steps[]: classes (three best), probabilities, after
                 1..T steps: the few that were chosen to be shown
    attention[]  layer, array: float32 [samples, h, w], firing rate of what the attention puts out
    rasters[]    layer, neurons (flat indices), array: bool [neurons, T], of the first sample
    traces[]     layer, neurons, spikes, after, before, threshold: names of arrays, of the first
                 sample; before and threshold are null where the neuron has no LIF equation
    NPZ          images: uint8 [samples, C, H, W], pictures of them, and the arrays above
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

from spikeformers.analysis.firing import evaluating, potentials, watching
from spikeformers.errors import InputError
from spikeformers.inspect.attention import watching_attention
from spikeformers.inspect.choose import choose, pick
from spikeformers.inspect.neurons import Tally, raster, traces

CHUNK = 16
DRAWN_LAYERS = 3
TOP = 3

Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]
Encode = Callable[[Tensor], Tensor]


def gather(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    folder: str | Path,
    *,
    encode: Encode,
    picture: Encode | None = None,
) -> None:
    """Run a model on a batch, choose samples worth showing and save what there is to see.

    Firing rates are counted over the whole batch; pictures, predictions and attention maps are
    kept for a few samples, half of them wrong; rasters and potentials for the first of those.

    Args:
        model: `[T, B, C, H, W]` -> per-step logits `[T, B, K]`, with a `readout` over time.
        images: Samples as a person sees them, uint8 `[B, C, H, W]`, grey or RGB; or any others,
            with `picture`. With several hundred there are mistakes among them.
        labels: True classes `[B]`.
        classes: Names of the `K` classes.
        folder: Where `inspect.json` and `inspect.npz` go; made if missing.
        encode: Turns such images into the model's input `[T, B, C, H, W]`, on its device.
        picture: Turns them into what a person sees, if they are not that already.

    Raises:
        InputError: The images, labels, classes and encoding do not fit together.
    """
    shows = picture or _unchanged
    _check(shows(images[:1]), len(images), labels, classes)
    labels = labels.cpu()
    with evaluating(model):
        scores, layers, maps = _run(model, images, len(classes), encode)
        predictions = scores[-1].argmax(-1)
        shown = choose(predictions, labels)
        drawn = [layers[i]["name"] for i in pick(list(range(len(layers))), DRAWN_LAYERS)]
        facts, arrays = _look_closely(model, encode(images[shown[:1]]), drawn)

    for i, values in enumerate(maps.values()):
        arrays[f"attention_{i}"] = values[shown].numpy()
    arrays["images"] = shows(images[shown]).cpu().numpy()
    facts |= {
        "timesteps": len(scores),
        "classes": [str(name) for name in classes],
        "looked_at": {"images": len(images), "right": int((predictions == labels).sum())},
        "layers": layers,
        "samples": [
            {"index": i, "label": int(labels[i]), "steps": _best(scores[:, i])} for i in shown
        ],
        "attention": [{"layer": name, "array": f"attention_{i}"} for i, name in enumerate(maps)],
    }
    _save(Path(folder), facts, arrays)


def _unchanged(images: Tensor) -> Tensor:
    return images


def _check(images: Tensor, count: int, labels: Tensor, classes: Sequence[str]) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise InputError(
            f"images is {images.dtype} {list(images.shape)}, expected uint8 [B, 1 or 3, H, W]: "
            "pass the pictures from before normalisation and encoding"
        )
    if not count == len(labels) > 0:
        raise InputError(
            f"there are {count} images and {len(labels)} labels: pass one label per image"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} class "
            "names: pass the names of the data set that the labels come from"
        )


def _run(
    model: nn.Module, images: Tensor, classes: int, encode: Encode
) -> tuple[Tensor, list[Facts], dict[str, Tensor]]:
    """Scores `[T, B, K]` after 1..T steps, the layers' firing and the attention maps `[B, h, w]`.

    Spikes are counted as they come, so that a chunk needs no more memory than a prediction.
    """
    tallies: dict[str, Tally] = {}
    maps: dict[str, list[Tensor]] = {}
    scores = []

    def count(name: str, _neuron: nn.Module, _current: Tensor, spikes: Tensor) -> None:
        tallies.setdefault(name, Tally()).add(spikes)

    def keep(name: str, values: Tensor) -> None:
        maps.setdefault(name, []).append(values.cpu())

    readout = cast(Callable[[Tensor], Tensor], model.readout)
    with watching(model, count), watching_attention(model, keep):
        for chunk in torch.split(images, CHUNK):
            logits = model(_encoded(encode, chunk))
            if logits.shape[-1] != classes:
                raise InputError(
                    f"classes has {classes} names, but the model scores {logits.shape[-1]} "
                    "classes: pass the names of the data set that the model was trained on"
                )
            steps = [readout(logits[: t + 1]) for t in range(len(logits))]
            scores.append(torch.stack(steps).float().cpu())
    names = [name for name, _ in model.named_modules() if name in tallies]
    layers = [tallies[name].facts(name) for name in names]
    return torch.cat(scores, 1), layers, {name: torch.cat(parts) for name, parts in maps.items()}


def _encoded(encode: Encode, images: Tensor) -> Tensor:
    x = encode(images)
    if x.ndim != 5 or x.shape[1] != len(images):
        raise InputError(
            f"encode made {list(x.shape)} of {len(images)} images, expected [T, B, C, H, W]: "
            "end it with encode.direct(x, timesteps=4)"
        )
    return x


def _look_closely(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[Facts, Arrays]:
    """Rasters and traces of some layers, while a single sample `[T, 1, ...]` passes."""
    arrays: Arrays = {}
    seen: dict[str, tuple[Facts, Facts]] = {}

    def look(name: str, neuron: Any, current: Tensor, spikes: Tensor) -> None:
        if name not in layers:
            return
        i = layers.index(name)
        spread, arrays[f"raster_{i}"] = raster(spikes)
        chosen, parts = traces(spikes, potentials(neuron, current))
        arrays.update({f"trace_{i}_{part}": values for part, values in parts.items()})
        names = {
            part: f"trace_{i}_{part}" if part in parts else None
            for part in ("spikes", "after", "before", "threshold")
        }
        seen[name] = (
            {"layer": name, "neurons": spread, "array": f"raster_{i}"},
            {"layer": name, "neurons": chosen, **names},
        )

    with watching(model, look):
        model(x)
    rasters, traced = zip(*(seen[name] for name in layers), strict=True)
    return {"rasters": list(rasters), "traces": list(traced)}, arrays


def _best(scores: Tensor) -> list[Facts]:
    """The best classes of one sample after each number of steps, from `[T, K]`."""
    best = scores.softmax(-1).topk(min(TOP, scores.shape[-1]))
    return [
        # JSON has no NaN: a diverged model has predictions, but no probabilities.
        {"classes": classes, "probabilities": [p if np.isfinite(p) else None for p in ps]}
        for classes, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _save(folder: Path, facts: Facts, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    # The JSON names the arrays, so it comes last: whoever finds it finds them too.
    _replace(folder / "inspect.npz", lambda file: np.savez_compressed(file, **cast(Any, arrays)))
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
