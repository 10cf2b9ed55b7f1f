"""From a recipe to the objects it names, and from a model to its figures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.data import Augment, ImageDataset, Preprocess, direct, epoch_batches, load_dataset
from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.layers import BatchNorm
from spikeformers.models import Backbone, create_model, load_model, read_checkpoint
from spikeformers.tasks import Classification
from spikeformers.train.recipe import DataSection, Recipe, recipe_from_dict


def default_device(device: str | None = None) -> torch.device:
    """Return the named device; without a name a GPU if there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    # Builds without CUDA raise an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason}") from error


def build_model(recipe: Recipe, dataset: ImageDataset) -> Backbone:
    """Return the recipe's model, with weights drawn from the recipe's seed.

    Raises:
        ConfigError: If channels or classes do not fit the data.
    """
    named = recipe.model
    for key, value, expected in (
        ("model.in_channels", named.in_channels, dataset.channels),
        ("model.num_classes", named.num_classes, len(dataset.classes)),
    ):
        if value != expected:
            raise ConfigError(f"{key}={value}, but {recipe.data.name} has {expected}")
    torch.manual_seed(recipe.train.seed)
    return create_model(
        named.name,
        in_channels=named.in_channels,
        num_classes=named.num_classes,
        **named.overrides,
    )


def preprocessing(data: DataSection, channels: int) -> Preprocess:
    """Return the evaluation transform of a recipe."""
    return Preprocess(data.image_size, data.mean, data.std, channels)


def augmentation(data: DataSection, preprocess: Preprocess) -> Augment:
    """Return the training transform of a recipe."""
    return Augment(
        preprocess,
        flip=data.flip,
        crop_padding=data.crop_padding,
        rotate=data.rotate,
        translate=data.translate,
        scale=data.scale,
        rand_augment_ops=data.rand_augment_ops,
        rand_augment_magnitude=data.rand_augment_magnitude,
    )


@torch.no_grad()
def recalibrate(model: Backbone, images: Iterable[Tensor], timesteps: int) -> None:
    """Re-estimate the running statistics of all batch norms as plain means over `images`.

    The moving averages of training follow the last few batches only, which are noisy where batches
    and maps are small.

    Args:
        model: Left in training mode.
        images: Batches `[B, C, H, W]`, varied as in training.
        timesteps: How often an image is shown.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for count, batch in enumerate(images, start=1):
        for norm in norms:
            norm.momentum = 1 / count
        model(direct(batch, timesteps))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def evaluate(
    model: Backbone,
    dataset: ImageDataset,
    preprocess: Preprocess,
    task: Classification,
    *,
    batch_size: int = 100,
    workers: int = 0,
) -> dict[str, Any]:
    """Return the figures of a model on a data set; see `tasks.Accuracy.compute`."""
    device = next(model.parameters()).device
    metric = task.metric(len(dataset.classes))
    batches = epoch_batches(
        dataset,
        preprocess,
        batch_size=batch_size,
        seed=0,
        epoch=0,
        shuffle=False,
        workers=workers,
    )
    was_training = model.training
    model.eval()
    for images, labels in batches:
        metric.update(task.predict(model, images.to(device)), labels)
    model.train(was_training)
    return metric.compute()


def load_trained(path: str | Path) -> tuple[Backbone, Recipe, list[str]]:
    """Return the model of a training checkpoint, its recipe and the names of its classes.

    Raises:
        CheckpointError: If the file is damaged or holds weights without a recipe.
    """
    model = load_model(path)
    header = read_checkpoint(path)[1]
    if "recipe" not in header:
        raise CheckpointError(f"{path} holds a model without a recipe: it was not made by training")
    return model, recipe_from_dict(header["recipe"]), header["progress"]["classes"]


def evaluate_checkpoint(
    path: str | Path, root: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Evaluate a training checkpoint on the test split of its data; only that split is read.

    Args:
        path: `best.safetensors` or `last.safetensors` of a run.
        root: Folder of the data, if it is not where it was in training.
        device: For example "cuda"; default: a GPU if there is one.
    """
    model, recipe, _ = load_trained(path)
    dataset = load_dataset(recipe.data.name, root or recipe.data.root, "test")
    figures = evaluate(
        model.to(default_device(device)),
        dataset,
        preprocessing(recipe.data, dataset.channels),
        Classification(recipe.train.timesteps),
        workers=recipe.data.workers,
    )
    return {**figures, "model": recipe.model.name, "data": recipe.data.name}
