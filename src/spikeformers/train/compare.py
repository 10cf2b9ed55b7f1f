"""Several models under one budget on the same images: one table of accuracies and costs.

    compare(["meta_spikeformer_xs32", "meta_spikeformer_s32"], "digits", "runs/compare", minutes=5)

All settings but the model come from one recipe, and nothing is tuned for any of them. The budget is
a number of epochs, or minutes of training, in which each model makes as many whole epochs as fit.
Each model trains in one process and is measured in another, because the peak of memory is one
number per process. `compare.json` is written after every model, so that the same call goes on where
it stopped.
"""

import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.analysis import evaluating
from spikeformers.data import ImageDataset, direct, load_dataset
from spikeformers.errors import (
    ConfigError,
    DataError,
    SpikeformersError,
    StoppedError,
    TrainingError,
)
from spikeformers.layers import fold
from spikeformers.models import Backbone, model_arguments
from spikeformers.tasks import Classification
from spikeformers.train._strict import nearest
from spikeformers.train.alone import alone
from spikeformers.train.checkpoint import differences
from spikeformers.train.distributed import default_device, joined
from spikeformers.train.evaluate import (
    build_model,
    evaluate_checkpoint,
    load_trained,
    open_test_set,
)
from spikeformers.train.log import environment, peak_memory, write_json
from spikeformers.train.loop import fit, measure_pace
from spikeformers.train.recipe import ExpectedSection, Recipe, load_recipe, recipe_from_dict
from spikeformers.train.stop import Stop, stopping

RESULT = "compare.json"
_PACE_SHARE = 0.02
"""Share of the minutes that is spent on measuring how many epochs fit in."""


@dataclass
class Row:
    """What is known of one model; `None` has not been measured.

    Attributes:
        model: Its registered name, or the checkpoint that was given.
        checkpoint: The weights that were measured.
        recipe: How they were trained, complete.
        parameters: Number of weights.
        timesteps: Steps T that an image is shown.
        seed: Of the training.
        epochs: Passes over the training images.
        minutes: Time of training, without evaluation.
        top1: Accuracy on the held-out images in percent, after the last epoch.
        top5: The same among the best five.
        images: Number of those images.
        firing_rate: Spikes / (neurons * T) over all neurons and held-out images.
        images_per_second: In inference: the folded model on batches of 100 images.
        memory_mib: Peak in evaluation; see `log.peak_memory`.
        train_images_per_second: In training, loading included.
        train_memory_mib: Peak in training.
        error: Why there are no figures.
    """

    model: str
    checkpoint: str
    recipe: dict[str, Any]
    parameters: int
    timesteps: int
    seed: int
    epochs: int | None = None
    minutes: float | None = None
    top1: float | None = None
    top5: float | None = None
    images: int | None = None
    firing_rate: float | None = None
    images_per_second: float | None = None
    memory_mib: float | None = None
    train_images_per_second: float | None = None
    train_memory_mib: float | None = None
    error: str | None = None


def compare(
    models: Sequence[str],
    recipe: str,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    epochs: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train or evaluate models on the same data under the same budget; return `compare.json`.

    A model takes those of `model.overrides` that its architecture has, and the size, channels and
    classes of the data. It is evaluated once, after its last epoch. A checkpoint is only measured.
    Models of an earlier call into the same folder stay in the table.

    Args:
        models: Registered names, or training checkpoints on the same data.
        recipe: Says everything else: a name or a YAML file.
        folder: Where `compare.json` goes, and the run of each model.
        overrides: Recipe keys to change, as `train.seed=1`.
        minutes: Budget of training for each model.
        epochs: Budget in epochs instead; with neither, the recipe's. The warm-up keeps its share.
        device: For example "cuda"; default: a GPU if there is one.

    Raises:
        ConfigError: Before work starts: if a model is unknown or does not fit the data, if an epoch
            takes longer than the minutes, or if the folder holds a comparison of other settings.
        StoppedError: If a signal asked to stop; the same call goes on.
    """
    base = load_recipe(recipe, overrides)
    if base.pretrain is not None:
        raise ConfigError(f"{recipe} pre-trains without labels: compare classifiers only")
    # What the recipe claims, it claims of its own model.
    base = dataclasses.replace(base, expected=ExpectedSection(**dict.fromkeys(vars(base.expected))))
    path, budget = Path(folder) / RESULT, _budget(base, minutes, epochs)
    _check_names(models, base)
    with joined(device) as ranks, stopping() as stop:
        if ranks.count > 1:
            raise ConfigError("compare trains one model after the other: start it without torchrun")
        train_set, test_set = (
            load_dataset(base.data.name, base.data.root, split, base.train.timesteps)
            for split in ("train", "test")
        )
        facts: dict[str, Any] = {
            "recipe": base.as_dict(),
            "budget": budget,
            "data": {
                "name": base.data.name,
                "training_images": len(train_set),
                "held_out_images": len(test_set),
                "classes": len(test_set.classes),
            },
            "environment": environment(ranks.device),
        }
        rows = _earlier_rows(path, facts)
        missing = [model for model in models if model not in rows or rows[model].top1 is None]
        for model in missing:
            planned = rows[model].epochs if model in rows else budget["epochs"]
            rows[model] = _new_row(model, planned, base, train_set, path.parent)
        for model in missing:
            if rows[model].epochs is None:
                rows[model].epochs = _epochs_in(budget["minutes"], rows[model], device, stop)
        words = ["spikeformers", "compare", *rows, "--recipe", recipe, *overrides]
        words += [f"--{key}={value:g}" for key, value in budget.items() if value is not None]
        facts["command"] = shlex.join(words)

        path.parent.mkdir(parents=True, exist_ok=True)
        for model in missing:
            _save(path, facts, rows)
            if stop.signal:
                raise StoppedError(
                    f"stopped by {stop.signal.name}; the same command goes on", stop.signal
                )
            _fill(rows[model], base.data.root, device, stop)
        return _save(path, facts, rows)


def _fill(row: Row, root: str | None, device: str | None, stop: Stop) -> None:
    """Train a model, unless it came as a checkpoint, and measure it."""
    print(f"{row.model}: {row.epochs} epochs", file=sys.stderr)
    figures: dict[str, Any] = {"error": None}
    try:
        if row.checkpoint != row.model:
            recipe = _lasting(recipe_from_dict(row.recipe), row.epochs or 1)
            row.recipe = recipe.as_dict()
            figures |= alone(stop, _train, recipe, device)
        figures |= alone(stop, _measure, row.checkpoint, root, device)
    except TrainingError as error:
        figures["error"] = str(error)
    vars(row).update(figures)


def _train(recipe: Recipe, device: str | None) -> dict[str, Any]:
    metrics = fit(recipe, device)
    return {
        "minutes": metrics["seconds"] / 60,
        "train_images_per_second": metrics["images_per_second"],
        "train_memory_mib": metrics["peak_memory_mib"],
    }


def _measure(checkpoint: str, root: str | None, device: str | None) -> dict[str, Any]:
    figures = evaluate_checkpoint(checkpoint, root, device)
    memory = peak_memory(default_device(device))
    return {
        **{key: figures[key] for key in ("top1", "top5", "images", "firing_rate")},
        "memory_mib": memory,
        "images_per_second": _inference_speed(checkpoint, root, device),
    }


def _inference_speed(checkpoint: str, root: str | None, device: str | None) -> float:
    """Return images/s: the median over a few batches, after one that warms up."""
    with joined(device) as ranks:
        model, recipe, _ = load_trained(checkpoint)
        images, _ = next(iter(open_test_set(recipe, root, ranks)[1]))
        folded: Any = fold(model).to(ranks.device)
        images = images.to(ranks.device, next(folded.parameters()).dtype)
        task = Classification(recipe.train.timesteps)
        seconds: list[float] = []
        while len(seconds) < 2 or (len(seconds) < 6 and sum(seconds) < 10):
            clock = time.perf_counter()
            # Scores that are on the host tell that the device has finished.
            task.predict(folded, images).cpu()
            seconds.append(time.perf_counter() - clock)
    return len(images) / statistics.median(seconds[1:])


def _check_names(models: Sequence[str], base: Recipe) -> None:
    """Refuse unknown models, and overrides that none of them takes."""
    if not models:
        raise ConfigError("there is nothing to compare: name at least one model")
    named = [base.model.name, *(model for model in models if not _is_checkpoint(model))]
    known = {argument for name in named for argument in model_arguments(name)}
    for key in base.model.overrides:
        if key not in known:
            raise ConfigError(f"no model here has an argument {key!r}{nearest(key, known)}")


def _is_checkpoint(model: str) -> bool:
    return Path(model).suffix == ".safetensors" or Path(model).is_file()


def _budget(recipe: Recipe, minutes: float | None, epochs: int | None) -> dict[str, Any]:
    if minutes is not None and epochs is not None:
        raise ConfigError(f"minutes={minutes:g} and epochs={epochs}: give one of the two")
    if minutes is None and epochs is None:
        epochs = recipe.train.epochs
    for key, value in (("minutes", minutes), ("epochs", epochs)):
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value:g}: expected more than 0")
    return {"minutes": minutes, "epochs": epochs}


def _new_row(
    model: str, epochs: int | None, base: Recipe, dataset: ImageDataset, folder: Path
) -> Row:
    """Return the row of a model that fits the data."""
    if _is_checkpoint(model):
        return _row_of_checkpoint(model, base, dataset)
    known = model_arguments(model)
    size = base.data.image_size
    filled = {"image_size": [size, size], **base.model.overrides}
    section = dataclasses.replace(
        base.model,
        name=model,
        in_channels=dataset.channels,
        num_classes=len(dataset.classes),
        overrides={key: value for key, value in filled.items() if key in known},
    )
    out = folder / model
    recipe = dataclasses.replace(base, out=str(out), model=section)
    try:
        network = build_model(recipe, dataset)
        blank = torch.zeros(1, dataset.channels, size, size)
        with evaluating(network):
            scores = network(direct(blank, base.train.timesteps))
        if not isinstance(scores, Tensor) or scores.shape[2:] != (len(dataset.classes),):
            raise ConfigError("it does not tell classes apart: compare classifiers only")
    except SpikeformersError as error:
        raise ConfigError(f"{model}: {error}") from error
    return _row(model, str(out / "best.safetensors"), recipe, network, epochs=epochs)


def _row_of_checkpoint(path: str, base: Recipe, dataset: ImageDataset) -> Row:
    network, recipe, progress = load_trained(path)
    if recipe.data.name != base.data.name or progress["classes"] != list(dataset.classes):
        raise ConfigError(
            f"{path} was trained on {recipe.data.name} with {len(progress['classes'])} classes, "
            f"the comparison is on {base.data.name} with {len(dataset.classes)}"
        )
    minutes = progress["seconds"] / 60
    return _row(path, path, recipe, network, epochs=progress["epoch"], minutes=minutes)


def _row(model: str, checkpoint: str, recipe: Recipe, network: Backbone, **known: Any) -> Row:
    return Row(
        model,
        checkpoint,
        recipe.as_dict(),
        sum(p.numel() for p in network.parameters()),
        recipe.train.timesteps,
        recipe.train.seed,
        **known,
    )


def _epochs_in(minutes: float, row: Row, device: str | None, stop: Stop) -> int:
    """Return how many epochs of training fit in the minutes here."""
    print(f"{row.model}: measuring how many epochs fit in {minutes:g} minutes", file=sys.stderr)
    seconds, recipe = 60 * minutes, recipe_from_dict(row.recipe)
    try:
        pace = alone(stop, measure_pace, recipe, device, _PACE_SHARE * seconds)
    except TrainingError as error:
        raise ConfigError(f"{row.model}: {error}") from error
    fitting = int((seconds - pace["start"]) / pace["epoch"])
    if fitting < 1:
        raise ConfigError(
            f"{row.model} needs {(pace['start'] + pace['epoch']) / 60:.2g} minutes for an epoch "
            f"here, so minutes={minutes:g} is too short"
        )
    return fitting


def _lasting(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe whose schedule is stretched to so many epochs, evaluated at the end only."""
    warmup = recipe.train.warmup_epochs * epochs / recipe.train.epochs
    train = dataclasses.replace(
        recipe.train, epochs=epochs, warmup_epochs=warmup, evaluate_every=epochs
    )
    return dataclasses.replace(recipe, train=train)


def _earlier_rows(path: Path, facts: Mapping[str, Any]) -> dict[str, Row]:
    """Return the rows of an earlier call by model, if it was about the same comparison."""
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = differences(saved["recipe"], facts["recipe"])
        for key in ("budget", "data", "environment"):
            changed += differences(saved[key], facts[key], f"{key}.")
        rows = {row["model"]: Row(**row) for row in saved["rows"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({error}): delete it, the runs beside it stay"
        ) from None
    if changed:
        raise ConfigError(
            f"{path} compares under other settings ({'; '.join(changed[:3])}): give the same ones "
            "to go on, or another folder"
        )
    return rows


def _save(path: Path, facts: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, Any]:
    result = {**facts, "rows": [dataclasses.asdict(row) for row in rows.values()]}
    write_json(path, result)
    return result
