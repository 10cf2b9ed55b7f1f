"""A finished run as a folder for others: weights, configuration, recipe and model card.

    share_run("runs/digits", "shared/digits", license="mit", push="owner/name")

Figures are copied from what the run wrote, with the data, seed, hardware and command they belong
to. Folders of this machine are left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeformers.errors import CheckpointError, DataError
from spikeformers.models import read_checkpoint, rebuild_model

_PREPROCESSING = ("image_size", "mean", "std", "crop")


def share_run(
    run: str | Path, folder: str | Path, *, license: str | None = None, push: str | None = None
) -> Path:
    """Write a run's best weights as a folder that `sf.from_pretrained` loads.

    Args:
        run: Folder that training wrote to the end.
        folder: New, or one that this function wrote; see `Backbone.save_pretrained`.
        license: Of the weights, for example "mit"; `None` leaves it out.
        push: `owner/name` of a repository on the Hub to upload to as well.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the checkpoint is damaged, not of a run or only pre-trained, or a file
            or the repository cannot be written.
        DataError: If `metrics.json` or `log.jsonl` is missing, damaged or of another run.
        MissingExtraError: If huggingface_hub is not installed.
    """
    run, folder = Path(run), Path(folder)
    tensors, header = read_checkpoint(run / "best.safetensors")
    if "recipe" not in header:
        raise CheckpointError(f"{run / 'best.safetensors'} has no recipe: training did not make it")
    recipe, progress = header["recipe"], header["progress"]
    if recipe.get("pretrain") is not None:
        raise CheckpointError(
            f"{run / 'best.safetensors'} was pre-trained without labels and knows no classes: "
            "share a run that was fine-tuned from it"
        )
    metrics = _read_json(run / "metrics.json")
    if metrics.get("best_epoch") != progress["best_epoch"]:
        raise DataError(
            f"{run / 'metrics.json'} is about epoch {metrics.get('best_epoch')}, best.safetensors "
            f"of epoch {progress['best_epoch']}: let 'spikeformers train' finish the run"
        )
    data = recipe["data"]
    card = {
        "classes": progress["classes"],
        "preprocessing": {key: data[key] for key in _PREPROCESSING if key in data},
        "timesteps": recipe["train"]["timesteps"],
        "recipe": _portable(recipe, folder.name),
        "figures": [_figure(recipe, metrics, _environment(run / "log.jsonl"))],
    }
    if license is not None:
        card["license"] = license
    model = rebuild_model(tensors, header).eval()
    model.save_pretrained(folder, card=card)
    if push is not None:
        model.push_to_hub(push, card=card)
    return folder


def _figure(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the accuracy of the best weights; what the run did not say stays `None`."""
    ranks = environment.get("ranks", 1)
    start = f"torchrun --nproc-per-node {ranks} -m spikeformers" if ranks > 1 else "spikeformers"
    where = " data.root=FOLDER" if recipe["data"].get("root") is not None else ""
    seconds = metrics.get("seconds")
    return {
        "data": recipe["data"]["name"],
        "top1": metrics.get("top1"),
        "seed": recipe["train"]["seed"],
        "hardware": _hardware(environment),
        "command": f"{start} train recipe.yaml{where}",
        "images": metrics.get("images"),
        "timesteps": recipe["train"]["timesteps"],
        "minutes": None if seconds is None else seconds / 60,
        "note": _note(metrics),
    }


def _note(metrics: Mapping[str, Any]) -> str:
    """Say that the epoch was chosen on the very images of the figure, which flatters it."""
    last = metrics.get("top1_last")
    return (
        f"epoch {metrics['best_epoch']} of {metrics.get('epochs')}, the best on these held-out "
        f"images{'' if last is None else f'; last epoch {last:.2f} %'}"
    )


def _hardware(environment: Mapping[str, Any]) -> str | None:
    if "device_name" not in environment:
        return None
    ranks = environment.get("ranks", 1)
    count = f"{ranks} x " if ranks > 1 else ""
    threads = f", threads: {environment['threads']}" if environment.get("device") == "cpu" else ""
    return f"{count}{environment['device_name']}{threads}, PyTorch {environment.get('torch')}"


def _portable(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the recipe without the folders of the machine it ran on."""
    model, distill = dict(recipe["model"]), recipe.get("distill")
    if model.get("weights") is not None:
        model["weights"] = _without_folder(model["weights"])
    if distill is not None:
        distill = {**distill, "teacher": _without_folder(distill["teacher"])}
    changed = {
        "out": f"runs/{name}",
        "model": model,
        "data": {**recipe["data"], "root": None},
        "distill": distill,
    }
    return {key: changed.get(key, value) for key, value in recipe.items()}


def _without_folder(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def _environment(log: Path) -> dict[str, Any]:
    """Return what the log's last `start` event says about machine and versions."""
    found: dict[str, Any] = {}
    for line in _read(log).splitlines():
        try:
            event = json.loads(line)
        # A line that a crash cut off.
        except ValueError:
            continue
        if event.get("event") == "start":
            found = event.get("environment", {})
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_read(path)))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): evaluate the run again") from error


def _read(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}: let 'spikeformers train' finish first")
    return path.read_text(encoding="utf-8", errors="replace")
