"""Recipes: one complete, flat YAML file per experiment, checked before anything is loaded.

Unknown, missing or mistyped keys fail with the nearest valid name. There is no inheritance between
recipes and no code in them; names resolve through registries. The command line overrides single
keys: `train.epochs=10`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from spikeformers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which model: its registered name, the ends that depend on the data, other overrides."""

    name: str
    in_channels: int
    num_classes: int
    overrides: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which images, how they are prepared and how they are varied in training."""

    name: str
    root: str | None
    image_size: int
    mean: list[float]
    std: list[float]
    flip: bool
    crop_padding: int
    rotate: float
    translate: float
    scale: float
    rand_augment_ops: int
    rand_augment_magnitude: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How long and how: AdamW, linear warm-up, half-cosine to zero."""

    seed: int
    timesteps: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    weight_decay: float
    label_smoothing: float
    clip_norm: float | None
    precision: str
    recalibration_batches: int
    evaluate_every: int


@dataclass(frozen=True, kw_only=True)
class ExpectedSection:
    """The claim: a measured figure, where and how; what nobody measured is null."""

    top1: float | None
    tolerance: float | None
    source: str | None
    hardware: str | None
    minutes: float | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    out: str
    model: ModelSection
    data: DataSection
    train: TrainSection
    expected: ExpectedSection

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain data."""
        return dataclasses.asdict(self)


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the library."""
    folder = resources.files("spikeformers") / "recipes"
    return sorted(
        file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides.

    Args:
        name: One of `list_recipes()`, or the path of a YAML file.
        overrides: For example `["train.epochs=10", "out=runs/mine"]`; values are YAML.

    Raises:
        ConfigError: If the recipe, a key or a value is not as it should be.
    """
    if name in list_recipes():
        text = (resources.files("spikeformers") / "recipes" / f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ConfigError(f"there is no recipe or file {name!r}{_nearest(name, list_recipes())}")
    try:
        content = yaml.safe_load(text)
        for override in overrides:
            _override(content, override)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: {' '.join(str(error).split())}") from error
    return recipe_from_dict(content)


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """Check nested plain data and return it as a recipe."""
    recipe: Recipe = _parse(Recipe, content, "")
    train = recipe.train
    for key, value, valid in (
        ("train.timesteps", train.timesteps, train.timesteps >= 1),
        ("train.epochs", train.epochs, train.epochs >= 1),
        ("train.batch_size", train.batch_size, train.batch_size >= 1),
        ("train.seed", train.seed, train.seed >= 0),
        ("train.learning_rate", train.learning_rate, train.learning_rate > 0),
        ("train.evaluate_every", train.evaluate_every, train.evaluate_every >= 1),
        ("train.label_smoothing", train.label_smoothing, 0 <= train.label_smoothing < 1),
        (
            "train.recalibration_batches",
            train.recalibration_batches,
            train.recalibration_batches >= 0,
        ),
        ("data.workers", recipe.data.workers, recipe.data.workers >= 0),
    ):
        if not valid:
            raise ConfigError(f"{key}={value} is out of range")
    if train.precision not in ("float32", "bfloat16"):
        raise ConfigError(f"train.precision={train.precision!r}: expected 'float32' or 'bfloat16'")
    return recipe


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is no override: write key=value, as train.epochs=10")
    *path, last = key.split(".")
    section = content
    for name in path:
        section = section.get(name) if isinstance(section, dict) else None  # type: ignore[assignment]
    if not isinstance(section, dict) or (
        last not in section and path[:2] != ["model", "overrides"]
    ):
        raise ConfigError(f"there is no recipe key {key!r}{_nearest(key, _keys(Recipe))}")
    section[last] = yaml.safe_load(value)


def _keys(section: Any, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(section):
        kind = typing.get_type_hints(section)[field.name]
        inner = dataclasses.is_dataclass(kind)
        keys += _keys(kind, f"{prefix}{field.name}.") if inner else [f"{prefix}{field.name}"]
    return keys


def _parse(kind: Any, value: Any, path: str) -> Any:
    """Return `value` as `kind`, or raise naming the key, what came and what was expected."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path or 'the recipe'} must be a section of keys, got {value!r}")
        hints = typing.get_type_hints(kind)
        dot = f"{path}." if path else ""
        for key in value:
            if key not in hints:
                raise ConfigError(f"there is no recipe key '{dot}{key}'{_nearest(key, hints)}")
        for key in hints:
            if key not in value:
                raise ConfigError(f"the recipe lacks the key '{dot}{key}'")
        section: Any = kind
        return section(**{k: _parse(hints[k], v, f"{dot}{k}") for k, v in value.items()})
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is list and isinstance(value, list):
        return [_parse(typing.get_args(kind)[0], item, path) for item in value]
    if origin is float and type(value) is int:
        return float(value)
    if type(value) is not origin:
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if origin is float else ""
        raise ConfigError(f"{path}={value!r}: expected {origin.__name__}{hint}")
    return value


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}"
