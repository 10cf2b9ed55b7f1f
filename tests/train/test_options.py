"""What a recipe can switch on changes what it should, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformers.errors import ConfigError, DataError, InputError
from spikeformers.layers import Trunk
from spikeformers.models import load_model, read_checkpoint
from spikeformers.train import Recipe, fit
from spikeformers.train import loop as loop_module
from spikeformers.train.distributed import Ranks
from spikeformers.train.evaluate import build_model
from spikeformers.train.prepare import prepare, steps_per_epoch

Small = Callable[..., Recipe]
ALONE = Ranks(0, 1, torch.device("cpu"))


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    fit(recipe)
    return read_checkpoint(Path(recipe.out) / "last.safetensors")[0]


def test_recomputation_changes_no_number(small: Small, tmp_path: Path) -> None:
    recipes = [
        small(
            "train.epochs=1",
            "train.precision=float64",
            f"train.recompute={on}",
            f"out={tmp_path / on}",
        )
        for on in ("true", "false")
    ]
    one, two = map(weights_of, recipes)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_acceleration_changes_no_number(small: Small, tmp_path: Path, memory: str) -> None:
    """Losses and weights of a run lie on those of the readable model."""
    runs = {
        kind: small("train.precision=float64", f"train.accelerate={kind}", f"out={tmp_path / kind}")
        for kind in ("null", memory)
    }
    weights = {kind: weights_of(recipe) for kind, recipe in runs.items()}
    for key, tensor in weights["null"].items():
        torch.testing.assert_close(weights[memory][key], tensor, rtol=0, atol=1e-9, msg=key)
    losses = {}
    for kind, recipe in runs.items():
        lines = (Path(recipe.out) / "log.jsonl").read_text().splitlines()
        losses[kind] = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert len(losses["null"]) == 2
    assert losses[memory] == pytest.approx(losses["null"], abs=1e-9)


def test_acceleration_and_compilation_exclude_each_other(small: Small) -> None:
    recipe = small("train.compile=true")
    said = r"train\.compile=true with train\.accelerate=fast: .* one"
    with pytest.raises(ConfigError, match=said):
        prepare(recipe, _model(recipe), ("a",), ALONE)
    with pytest.raises(ConfigError, match=r"train\.accelerate='quick': expected 'fast' or 'low'"):
        small("train.accelerate=quick")


def test_recomputation_reaches_the_trunks(small: Small) -> None:
    recipe = small("train.recompute=true")
    training = prepare(recipe, _model(recipe), ("a",), ALONE)
    trunks = [m for m in training.model.modules() if isinstance(m, Trunk)]
    assert trunks and all(trunk.recomputes for trunk in trunks)
    plain = small("train.recompute=true", "model.overrides.shortcut=sew_shortcut")
    with pytest.raises(ConfigError, match=r"train\.recompute=true: .* has no trunk"):
        prepare(plain, _model(plain), ("a",), ALONE)


def _model(recipe: Recipe) -> torch.nn.Module:
    from spikeformers.data import load_dataset

    return build_model(recipe, load_dataset(recipe.data.name, recipe.data.root, "train"))


def test_the_average_follows_its_equation(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """`average <- d average + (1 - d) weights`, `d = min(decay, (1 + n) / (10 + n))`."""
    recipe = small("train.ema_decay=0.9", "train.recalibration_batches=0")
    update, seen = loop_module._update, []

    def watch(run: object, *arguments: object) -> None:
        update(run, *arguments)
        state = run.training.model.state_dict()
        seen.append({name: tensor.clone() for name, tensor in state.items()})

    monkeypatch.setattr(loop_module, "_update", watch)
    fit(recipe)
    saved = load_model(Path(recipe.out) / "last.safetensors").state_dict()
    for name in saved:
        average = seen[0][name]
        for n, later in enumerate(seen[1:], start=1):
            share = 1 - min(0.9, (1 + n) / (10 + n))
            average = (
                torch.lerp(average, later[name], share)
                if average.is_floating_point()
                else (later[name])
            )
        torch.testing.assert_close(saved[name], average, msg=name)


def test_accumulation_adds_up_gradients(small: Small) -> None:
    """Not those of the whole batch, since batch norm sees its halves; but their mean."""
    from spikeformers.train.loop import _update

    recipe = small("train.accumulate=2", "train.clip_norm=null")
    losses = []
    monkey = _update

    def count(run: object, *arguments: object) -> None:
        before = list(run.training.done.counts)
        monkey(run, *arguments)
        losses.append([b - a for a, b in zip(before, run.training.done.counts, strict=True)])

    loop_module._update = count
    try:
        fit(recipe)
    finally:
        loop_module._update = monkey
    assert all(seen == 8 for _, _, seen in losses)


def test_a_batch_has_to_split_evenly(small: Small) -> None:
    settings = small("train.accumulate=3").train
    with pytest.raises(ConfigError, match=r"1 processes times train\.accumulate=3: choose a mult"):
        steps_per_epoch(settings, 20, ALONE)


def test_float16_scales_the_loss_and_resumes(small: Small) -> None:
    recipe = small("train.precision=float16", "train.epochs=1")
    fit(recipe)
    header = read_checkpoint(Path(recipe.out) / "last.safetensors")[1]
    assert header["scaler"]["scale"] > 1


@pytest.mark.parametrize(
    "override",
    [
        "train.tet=0.05",
        "train.optimizer=lamb",
        "train.optimizer=sgd",
        "train.layer_decay=0.7",
        "augment.mixup=0.5",
        "augment.cutmix=1.0",
        "augment.random_erasing=0.5",
        "augment.resized_crop=0.5",
    ],
)
def test_options_train_and_change_the_weights(small: Small, tmp_path: Path, override: str) -> None:
    plain = weights_of(small("train.epochs=1", f"out={tmp_path / 'plain'}"))
    changed = weights_of(small("train.epochs=1", override, f"out={tmp_path / 'changed'}"))
    key = "model.stages.0.embed.conv.conv.weight"
    assert changed[key].isfinite().all() and not torch.equal(plain[key], changed[key])


def test_mixing_ends_after_the_epochs_that_mix(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, mixed = loop_module._update, []

    def watch(run: object, images: object, targets: torch.Tensor, where: str) -> None:
        mixed.append(targets.ndim == 2)
        update(run, images, targets, where)

    monkeypatch.setattr(loop_module, "_update", watch)
    fit(small("augment.mixup=0.5", "augment.mix_epochs=1"))
    assert mixed == [True, True, False, False]


def test_surrogate_modules_agree_with_the_main_head(small: Small, tmp_path: Path) -> None:
    mixer = "model.overrides={image_size: [16, 16], strides: [1, 1, 1, 2, 2], surrogates: true}"
    settings = ("model.name=stmixer_tiny", mixer, "train.epochs=1")
    plain = weights_of(small(*settings, f"out={tmp_path / 'plain'}"))
    agreed = weights_of(small(*settings, "train.sml=0.333", f"out={tmp_path / 'agreed'}"))
    for key in ("model.head.linear.weight", "model.head.surrogates.0.head.linear.weight"):
        assert agreed[key].isfinite().all() and not torch.equal(plain[key], agreed[key])
    with pytest.raises(InputError, match="the model has no surrogate modules"):
        fit(small("train.sml=0.333", f"out={tmp_path / 'none'}"))


def test_tensorboard_lies_beside_the_log(small: Small) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = small()
    fit(recipe, tensorboard=True)
    board = EventAccumulator(str(Path(recipe.out) / "tensorboard")).Reload()
    log = [json.loads(x) for x in (Path(recipe.out) / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if entry["event"] == "epoch"]
    assert [point.value for point in board.Scalars("loss")] == pytest.approx(losses)
    assert {"top1", "top5", "anytime/top1_after_1"} <= set(board.Tags()["scalars"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, one of them damaged."""
    for split, count in (("train", 8), ("test", 3)):
        for label in range(2):
            place = tmp_path / "images" / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((16, 16, 3), 200 * label + i, np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    (tmp_path / "images/train/class1/5.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_skipped_or_fatal(
    small: Small, folder: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["data.name=image_folder", f"data.root={folder}", f"data.workers={workers}"]
    shape += ["model.in_channels=3", "model.num_classes=2"]
    shape += ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.3, 0.3, 0.3]", "train.epochs=1"]
    with pytest.raises(DataError, match=r"cannot read the image .*5\.png"):
        fit(small(*shape))
    recipe = small(*shape, "data.unreadable=skip", "out=" + str(folder / "run"))
    fit(recipe)
    assert capsys.readouterr().err.count("cannot read the image") == 1
    log = (Path(recipe.out) / "log.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in log if "skipped" in line]
    assert [entry["epoch"] for entry in skipped] == [1] and "5.png" in skipped[0]["message"]
