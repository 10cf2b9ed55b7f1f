"""Does a checkpoint reach what its recipe expects?"""

from pathlib import Path
from typing import Any

from spikeformers.data import DATASETS
from spikeformers.errors import ConfigError
from spikeformers.train.distributed import default_device
from spikeformers.train.evaluate import evaluate_checkpoint, load_trained
from spikeformers.train.log import environment, write_json
from spikeformers.train.recipe import Recipe, list_recipes, load_recipe


def verify(
    name: str,
    recipe: Recipe,
    checkpoint: str | Path,
    *,
    root: str | None = None,
    device: str | None = None,
    record: str | Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint and compare it with the figure that a recipe expects.

    The verdict is "reproduced" from `top1 - tolerance` on, else "below". It is "not judged" where
    the recipe expects nothing, or a figure from memory (mark M), which is never a threshold.

    Args:
        name: The recipe's name, for the record.
        recipe: The recipe.
        checkpoint: `best.safetensors` or `last.safetensors` of a run.
        root: Folder of the data, if it is not where it was in training.
        device: For example "cuda"; default: a GPU if there is one.
        record: JSON file to write the result to, for the table in the docs.

    Returns:
        The measured and the expected figure, the verdict, and what they depend on.

    Raises:
        ConfigError: If the checkpoint is of another model, data set or number of steps.
        CheckpointError: If it is damaged or was not made by training.
    """
    _, made, progress = load_trained(checkpoint)
    for key, theirs, ours in (
        ("model.name", made.model.name, recipe.model.name),
        ("model.overrides", made.model.overrides, recipe.model.overrides),
        ("data.name", made.data.name, recipe.data.name),
        ("train.timesteps", made.train.timesteps, recipe.train.timesteps),
    ):
        if theirs != ours:
            raise ConfigError(
                f"{checkpoint} was trained with {key}={theirs}, the recipe {name} says {ours}: "
                "verify it against the recipe that made it"
            )
    figures = evaluate_checkpoint(checkpoint, root, device)
    expected, full = recipe.expected, DATASETS[recipe.data.name].test_images
    facts = {
        "recipe": name,
        "verdict": verdict(figures["top1"], recipe),
        "top1": figures["top1"],
        "expected": expected.top1,
        "tolerance": expected.tolerance,
        "mark": expected.mark,
        "source": expected.source,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "images": figures["images"],
        "subset": None if full is None else figures["images"] != full,
        "timesteps": recipe.train.timesteps,
        "seed": made.train.seed,
        "epochs": progress["epoch"],
        "minutes": progress["seconds"] / 60,
        "command": _command(name, recipe, made),
        "environment": environment(default_device(device)),
    }
    if record is not None:
        Path(record).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(record), facts)
    return facts


def verdict(top1: float, recipe: Recipe) -> str:
    """Judge a figure; see `verify`."""
    expected = recipe.expected
    if expected.top1 is None or expected.mark == "M":
        return "not judged"
    reached = top1 >= expected.top1 - (expected.tolerance or 0)
    return "reproduced" if reached else "below"


def _command(name: str, recipe: Recipe, made: Recipe) -> str:
    """Return the training command, with the keys in which the run differs from the recipe."""
    if name in list_recipes():
        recipe = load_recipe(name)
    overrides = [
        f"{section}.{key}={value}"
        for section, keys in made.as_dict().items()
        if isinstance(keys, dict) and section != "expected"
        for key, value in keys.items()
        if value != (recipe.as_dict()[section] or {}).get(key) and key not in ("root", "workers")
    ]
    where = [] if made.data.root is None else ["data.root=FOLDER"]
    return " ".join(["spikeformers train", name, *where, *overrides])
