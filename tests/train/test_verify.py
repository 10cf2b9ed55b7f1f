"""A measured figure against the expected one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from spikeformers.cli import main
from spikeformers.errors import ConfigError
from spikeformers.train import Recipe, fit, verify

Small = Callable[..., Recipe]


def expecting(recipe: Recipe, **claim: object) -> Recipe:
    return dataclasses.replace(recipe, expected=dataclasses.replace(recipe.expected, **claim))


def test_verdicts(small: Small) -> None:
    recipe = small()
    top1 = fit(recipe)["top1"]
    best = Path(recipe.out) / "best.safetensors"
    for claim, verdict in (
        (dict(top1=top1, tolerance=0.0, mark="own"), "reproduced"),
        (dict(top1=top1 + 1.0, tolerance=1.0, mark="S"), "reproduced"),
        (dict(top1=top1 + 1.0, tolerance=0.9, mark="S"), "below"),
        (dict(top1=top1 + 1.0, tolerance=0.0, mark="M"), "not judged"),
        (dict(top1=None), "not judged"),
    ):
        facts = verify("mnist", expecting(recipe, **claim), best, device="cpu")
        assert facts["verdict"] == verdict and facts["top1"] == top1
    # Ten images are not the ten thousand of the test set.
    assert facts["subset"] is True and facts["images"] == 10
    shipped = facts["command"]
    assert shipped.startswith("spikeformers train mnist data.root=FOLDER model.overrides={")
    assert "train.batch_size=8" in shipped and "train.seed" not in shipped
    mine = verify("mine", small("train.epochs=9", "augment.flip=true"), best, device="cpu")
    assert mine["command"].endswith("mine data.root=FOLDER augment.flip=False train.epochs=2")


def test_a_checkpoint_of_another_recipe_is_refused(small: Small) -> None:
    recipe = small()
    fit(recipe)
    best = Path(recipe.out) / "best.safetensors"
    with pytest.raises(ConfigError, match=r"trained with train\.timesteps=2, the recipe x says 4"):
        verify("x", small("train.timesteps=4"), best)


def test_the_verb_records_and_exits_with_one_below(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = expecting(small(), top1=100.0, tolerance=0.5, mark="S", source="nowhere")
    fit(recipe)
    file, record = tmp_path / "mine.yaml", tmp_path / "records/mine.json"
    file.write_text(yaml.safe_dump(recipe.as_dict()))
    best = str(Path(recipe.out) / "best.safetensors")
    arguments = ["verify", str(file), best, "--record", str(record), "--device", "cpu"]
    assert main(arguments) == 1
    assert "below: top-1" in capsys.readouterr().out
    facts = json.loads(record.read_text())
    assert facts["recipe"] == "mine" and facts["verdict"] == "below" and facts["seed"] == 0
