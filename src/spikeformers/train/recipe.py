"""Recipes: one complete, flat YAML file per experiment, checked before anything is loaded.

Unknown, missing or mistyped keys fail with the nearest valid name. There is no inheritance between
recipes and no code in them; names resolve through registries. The command line overrides single
keys: `train.epochs=10`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from spikeformers.errors import ConfigError
from spikeformers.train._strict import nearest, override, parse


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Which model, and where its weights start.

    Attributes:
        name: A registered name.
        in_channels: Channels of the images.
        num_classes: Classes.
        overrides: Other arguments of the architecture.
        weights: Checkpoint to start from, for example of a run at T=1; null draws new weights.
    """

    name: str
    in_channels: int
    num_classes: int
    overrides: dict[str, Any]
    weights: str | None


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which images, and how they are prepared.

    Attributes:
        name: A data set that `load_dataset` knows.
        root: Folder with its files.
        image_size: Side of the images that the model sees.
        crop: Share of the side that evaluation cuts out of the centre.
        mean: Mean per channel of values in 0..1, or of counts of events.
        std: Standard deviation per channel.
        unreadable: What a damaged image does: "fail" or "skip".
        workers: Loading processes of each rank.
    """

    name: str
    root: str | None
    image_size: int
    crop: float
    mean: list[float]
    std: list[float]
    unreadable: str
    workers: int


@dataclass(frozen=True, kw_only=True)
class AugmentSection:
    """How images are varied in training; see `data.Augment` and `data.Mix`.

    Attributes:
        resized_crop: Smallest share of the area that a random crop keeps; null crops nothing.
        flip: Mirror half of the images.
        crop_padding: Pixels to pad before a random crop of the final size.
        rotate: Degrees.
        translate: Share of the side.
        scale: Share of the size.
        rand_augment_ops: torchvision's RandAugment: operations per image. Recordings of events are
            turned, sheared, shifted or cut out instead.
        rand_augment_magnitude: Their strength.
        timm_augment: timm's RandAugment instead, for example "rand-m9-mstd0.5-inc1"; or its
            AutoAugment, "original".
        random_erasing: Chance of erasing a rectangle.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off.
        mix_chance: Share of the batches that are mixed, by mixup or cutmix.
        mix_epochs: First epochs, which alone mix; null mixes in all.
    """

    resized_crop: float | None
    flip: bool
    crop_padding: int
    rotate: float
    translate: float
    scale: float
    rand_augment_ops: int
    rand_augment_magnitude: int
    timm_augment: str | None
    random_erasing: float
    mixup: float
    cutmix: float
    mix_chance: float
    mix_epochs: int | None


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How long and how: linear warm-up, then half a cosine down to the final rate.

    Attributes:
        seed: Of the weights, the order of the images and everything drawn in training.
        timesteps: Steps T that an image is shown, or frames that a recording of events becomes.
        epochs: Passes over the training images.
        batch_size: Images per optimiser step, all ranks and micro-batches together.
        accumulate: Micro-batches per step and rank. Not equal to one large batch: batch norm
            sees a micro-batch at a time.
        optimizer: "adamw", "lamb" or "sgd".
        momentum: Share of its last step that SGD keeps; the others have none to set.
        beta2: How slowly AdamW and LAMB forget squared gradients; null is 0.999.
        epsilon: What they add to the divisor; null is their own.
        learning_rate: Peak rate.
        reference_batch: Batch size that `learning_rate` is meant for; it is scaled linearly to
            `batch_size`. null takes the rate as it is.
        final_learning_rate: Where the cosine ends, on the same scale.
        warmup_epochs: Length of the warm-up.
        weight_decay: On weights; norms, biases and neurons have none.
        layer_decay: Factor of the rate from each layer to the one below it; 1 is off.
        clip_norm: Largest norm of the gradient; null does not clip.
        label_smoothing: Share of the target that is spread over all classes.
        tet: null trains the mean over time; a number trains every step, with so much weight on
            pulling the scores towards 1 (see `tasks.TET`).
        sml: null trains surrogate modules on the labels alone; a number has them agree with the
            main head as well, with so much weight (see `tasks.SurrogateAgreement`).
        ponder: null leaves out what it costs to run tokens; a number is the price of one block for
            all tokens (`delta_p` of models whose tokens halt).
        ema_decay: Decay per step (less in the first steps) of a moving average of the weights,
            which is then what is evaluated and saved as best; null is off.
        precision: "float32", "float64", or autocast to "bfloat16" or "float16".
        recompute: Keep only the residual stream for the backward pass.
        accelerate: "fast" or "low" trains the accelerated twin of the model, which computes the
            same (see `spikeformers.accelerate`); null trains the readable model.
        quantize: 8 trains what the weights do once they are rounded to so many bits, see
            `spikeformers.quantize`; null trains real weights.
        compile: Compile the readable model with torch.compile instead.
        sharded: Under torchrun, split weights and optimiser over the ranks (FSDP2) instead of
            copying them to each (DDP).
        recalibration_batches: Training batches from which batch-norm statistics are estimated
            anew before each evaluation; 0 is off.
        evaluate_every: Epochs between evaluations.
        checkpoint_steps: Steps between checkpoints within an epoch; null writes at its end only.
    """

    seed: int
    timesteps: int
    epochs: int
    batch_size: int
    accumulate: int
    optimizer: str
    momentum: float
    beta2: float | None
    epsilon: float | None
    learning_rate: float
    reference_batch: int | None
    final_learning_rate: float
    warmup_epochs: float
    weight_decay: float
    layer_decay: float
    clip_norm: float | None
    label_smoothing: float
    tet: float | None
    sml: float | None
    ponder: float | None
    ema_decay: float | None
    precision: str
    recompute: bool
    accelerate: str | None
    quantize: int | None
    compile: bool
    sharded: bool
    recalibration_batches: int
    evaluate_every: int
    checkpoint_steps: int | None


@dataclass(frozen=True, kw_only=True)
class PretrainSection:
    """Training without labels: hidden parts of images are guessed; see `tasks.MaskedAutoencoding`.

    `best.safetensors` is then the epoch of the lowest error; `model.weights` of another recipe
    starts from it.

    Attributes:
        mask_ratio: Share of the tokens that is hidden.
        patch: Side of a token in pixels, which is the model's last stride.
        decoder_dim: Width of the decoder; see `models.masked_autoencoder`.
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.
    """

    mask_ratio: float
    patch: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int


@dataclass(frozen=True, kw_only=True)
class DistillSection:
    """A teacher whose answers are learned beside the labels; see `tasks.Distillation`.

    Attributes:
        teacher: A training checkpoint of ours, or "timm/NAME" for a pretrained model of timm.
        kind: "hard" (the teacher's best class) or "soft" (its probabilities).
        weight: Share of the teacher in the loss.
        temperature: Softens both sides; used by "soft" only.
    """

    teacher: str
    kind: str
    weight: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class ExpectedSection:
    """The claim: a figure, who says so, where and how; what nobody measured is null.

    Attributes:
        top1: Accuracy in percent.
        tolerance: How far below it a run still reproduces it, in points.
        source: Where the figure stands.
        mark: "own" (measured with this library), "S" (seen in the source), "R" (third party) or
            "M" (from memory, and so never a threshold).
        hardware: What it was measured on.
        minutes: How long training took there.
    """

    top1: float | None
    tolerance: float | None
    source: str | None
    mark: str | None
    hardware: str | None
    minutes: float | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    out: str
    model: ModelSection
    data: DataSection
    augment: AugmentSection
    train: TrainSection
    distill: DistillSection | None
    pretrain: PretrainSection | None
    expected: ExpectedSection

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain data."""
        return dataclasses.asdict(self)


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the library.

    Those of published results stand in folders, one per data set: `cifar10/spikformer_4_384`.
    """
    with resources.as_file(resources.files("spikeformers") / "recipes") as folder:
        files = [path.relative_to(folder) for path in folder.rglob("*.yaml")]
    return sorted(file.with_suffix("").as_posix() for file in files)


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
        raise ConfigError(f"there is no recipe or file {name!r}{nearest(name, list_recipes())}")
    try:
        content = yaml.safe_load(text)
        for assignment in overrides:
            override(content, assignment, Recipe)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name}: {' '.join(str(error).split())}") from error
    return recipe_from_dict(content)


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """Check nested plain data and return it as a recipe.

    Raises:
        ConfigError: If a key is unknown or missing, or a value mistyped or out of range.
    """
    recipe: Recipe = parse(Recipe, content, "")
    for key, (low, high) in _RANGES.items():
        value = _value(recipe, key)
        if value is not None and not low <= value <= high:
            span = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise ConfigError(f"{key}={value}: expected {span}")
    for key, choices in _CHOICES.items():
        value = _value(recipe, key)
        if value is not None and value not in choices:
            raise ConfigError(f"{key}={value!r}: expected {' or '.join(map(repr, choices))}")
    return recipe


_TINY = 1e-12
_RANGES: dict[str, tuple[float, float]] = {
    "data.image_size": (1, math.inf),
    "data.crop": (0.1, 1),
    "data.workers": (0, math.inf),
    "augment.resized_crop": (_TINY, 1),
    "augment.mixup": (0, math.inf),
    "augment.cutmix": (0, math.inf),
    "augment.mix_chance": (0, 1),
    "augment.mix_epochs": (1, math.inf),
    "train.seed": (0, math.inf),
    "train.timesteps": (1, math.inf),
    "train.epochs": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.accumulate": (1, math.inf),
    "train.momentum": (0, 0.9999),
    "train.beta2": (0, 1 - _TINY),
    "train.epsilon": (_TINY, math.inf),
    "train.learning_rate": (_TINY, math.inf),
    "train.reference_batch": (1, math.inf),
    "train.final_learning_rate": (0, math.inf),
    "train.warmup_epochs": (0, math.inf),
    "train.weight_decay": (0, math.inf),
    "train.layer_decay": (_TINY, 1),
    "train.clip_norm": (_TINY, math.inf),
    "train.label_smoothing": (0, 0.999),
    "train.tet": (0, 1),
    "train.sml": (0, 1),
    "train.ponder": (0, math.inf),
    "train.ema_decay": (0, 1),
    "train.recalibration_batches": (0, math.inf),
    "train.evaluate_every": (1, math.inf),
    "train.checkpoint_steps": (1, math.inf),
    "distill.weight": (0, 1),
    "distill.temperature": (_TINY, math.inf),
    "pretrain.mask_ratio": (0.01, 0.99),
    "pretrain.patch": (1, math.inf),
    "pretrain.decoder_dim": (4, math.inf),
    "pretrain.decoder_depth": (1, math.inf),
    "pretrain.decoder_heads": (1, math.inf),
}
_CHOICES: dict[str, tuple[str | int, ...]] = {
    "data.unreadable": ("fail", "skip"),
    "train.optimizer": ("adamw", "lamb", "sgd"),
    "train.accelerate": ("fast", "low"),
    "train.quantize": (8,),
    "train.precision": ("float32", "float64", "bfloat16", "float16"),
    "distill.kind": ("hard", "soft"),
    "expected.mark": ("own", "S", "R", "M"),
}


def _value(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name, None)
