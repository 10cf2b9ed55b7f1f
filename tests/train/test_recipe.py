"""Recipes are complete, strict and checked before work starts."""

import re
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

from spikeformers.data import DATASETS, Mix
from spikeformers.errors import ConfigError
from spikeformers.models import create_model
from spikeformers.train import list_recipes, load_recipe
from spikeformers.train.evaluate import augmentation, preprocessing


@pytest.mark.parametrize("name", list_recipes())
@torch.no_grad()
def test_every_recipe_parses_and_its_model_takes_its_images(name: str) -> None:
    recipe = load_recipe(name)
    named, side = recipe.model, recipe.data.image_size
    shape = dict(in_channels=named.in_channels, num_classes=named.num_classes)
    with torch.device("meta"):
        model = create_model(named.name, **shape, **named.overrides).eval()
        scores = model(torch.empty(1, 1, named.in_channels, side, side))
    assert scores.shape == (1, 1, named.num_classes)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_suits_its_data_set(name: str) -> None:
    recipe = load_recipe(name)
    frames = [load for load in (DATASETS[recipe.data.name].read_events,) if load is not None]
    assert recipe.model.in_channels == len(recipe.data.mean) == len(recipe.data.std)
    assert (recipe.model.in_channels == 2) == bool(frames)
    augmentation(recipe, preprocessing(recipe.data, recipe.model.in_channels))
    Mix(recipe.augment.mixup, recipe.augment.cutmix, 10, recipe.augment.mix_chance)
    ranks = re.search(rf"--nproc-per-node (\d+) -m spikeformers train {name} ", _header(name))
    assert ranks or f"  spikeformers train {name}" in _header(name)
    assert recipe.train.batch_size % int(ranks[1] if ranks else 1) == 0
    assert recipe.out == f"runs/{name}"


def _header(name: str) -> str:
    text = (resources.files("spikeformers") / "recipes" / f"{name}.yaml").read_text()
    return text.partition("\nout: ")[0]


def test_overrides_change_single_keys() -> None:
    recipe = load_recipe(
        "digits",
        ["train.epochs=3", "out=elsewhere", "data.root=null", "model.overrides.heads=4"],
    )
    assert recipe.train.epochs == 3
    assert recipe.out == "elsewhere"
    assert recipe.model.overrides == {"heads": 4}
    assert recipe.train.batch_size == load_recipe("digits").train.batch_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "no recipe key 'train.epoch'; did you mean 'train.epochs'?"),
        ("epochs=3", "no recipe key 'epochs'"),
        ("train.epochs", "write key=value"),
        ("train.epochs=many", "train.epochs='many': expected int"),
        ("train.epochs=0", "train.epochs=0: expected at least 1"),
        ("train.label_smoothing=1", "train.label_smoothing=1.0: expected 0 to 0.999"),
        ("train.learning_rate=1e-3", "write 1.0e-3"),
        ("train.precision=float8", "expected 'float32' or 'float64' or 'bfloat16' or 'float16'"),
        ("augment.flip=1", "augment.flip=1: expected bool"),
        ("data.mean=[a]", "data.mean='a': expected float"),
        ("train=3", "train must be a section"),
        ("augment.mix_chance=2", "augment.mix_chance=2.0: expected 0 to 1"),
        ("train.optimizer=adam", "expected 'adamw' or 'lamb' or 'sgd'"),
        ("distill.kind=hard", "distill is null: give the whole section"),
        ("distill={kind: hard}", "lacks the key 'distill.teacher'"),
        (
            "distill={teacher: t, kind: herd, weight: 1, temperature: 1}",
            "distill.kind='herd': expected 'hard' or 'soft'",
        ),
        ("train.epochs=[", "recipe digits"),
    ],
)
def test_a_bad_override_names_key_and_expectation(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe("digits", [override])


def test_missing_and_unknown_keys_of_a_file(tmp_path: Path) -> None:
    content = load_recipe("digits").as_dict()
    del content["train"]["seed"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"lacks the key 'train\.seed'"):
        load_recipe(str(path))
    content["train"] |= {"seed": 0, "lerning_rate": 1.0}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        load_recipe(str(path))


def test_unknown_recipe_has_a_near_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fashion_mnist'"):
        load_recipe("fashion-mnist")
