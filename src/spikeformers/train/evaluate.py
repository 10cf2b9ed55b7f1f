"""From a recipe to the objects it names, and from a model to its figures."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.analysis import count_spikes
from spikeformers.data import (
    Augment,
    ImageDataset,
    Preprocess,
    epoch_batches,
    load_dataset,
    over_time,
)
from spikeformers.data.loader import Batch, EpochBatches
from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.layers import BatchNorm
from spikeformers.models import Backbone, create_model, load_model, read_checkpoint
from spikeformers.tasks import Classification, MaskedAutoencoding, Task
from spikeformers.train.distributed import Ranks, joined
from spikeformers.train.recipe import (
    DataSection,
    ModelSection,
    PretrainSection,
    Recipe,
    recipe_from_dict,
)
from spikeformers.transform import simulate_rounding


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
    if recipe.pretrain is None:
        model = create_model(
            named.name,
            in_channels=named.in_channels,
            num_classes=named.num_classes,
            **named.overrides,
        )
    else:
        model = _autoencoder(named, recipe.pretrain)
    if named.weights is not None:
        start_from(model, named.weights)
    return model


def _autoencoder(named: ModelSection, pretrain: PretrainSection) -> Backbone:
    model = create_model(
        "masked_autoencoder",
        backbone=named.name,
        overrides=named.overrides,
        in_channels=named.in_channels,
        decoder_dim=pretrain.decoder_dim,
        decoder_depth=pretrain.decoder_depth,
        decoder_heads=pretrain.decoder_heads,
    )
    if pretrain.patch != model.strides[-1]:
        raise ConfigError(
            f"pretrain.patch={pretrain.patch}, but a token of {named.name} stands for "
            f"{model.strides[-1]} pixels"
        )
    return model


def bare_task(recipe: Recipe) -> Task:
    """Return what a recipe trains for, without what only training needs."""
    if recipe.pretrain is None:
        return Classification(recipe.train.timesteps)
    pretrain = recipe.pretrain
    return MaskedAutoencoding(recipe.train.timesteps, pretrain.mask_ratio, pretrain.patch)


@torch.no_grad()
def start_from(model: Backbone, path: str | Path) -> None:
    """Take over the weights of a checkpoint, for fine-tuning: more steps, other classes, a teacher.

    The head's weights are taken over where they fit; a head of other classes, the second one of a
    `DistillationHead`, or one in the place of a decoder keeps its start.

    Raises:
        CheckpointError: If the file is damaged or its backbone is another one.
    """
    weights = load_model(path).state_dict()
    own = model.state_dict()
    fits = {k for k in own if k in weights and weights[k].shape == own[k].shape}
    backbone = {k for k in own.keys() | weights.keys() if not k.startswith("head.")}
    if misfits := sorted(backbone - fits):
        raise CheckpointError(
            f"model.weights={path} is of another backbone: {', '.join(misfits[:3])} "
            f"{'does' if len(misfits) == 1 else 'do'} not fit ({len(misfits)} in all)"
        )
    for name in fits:
        own[name].copy_(weights[name])


def preprocessing(data: DataSection, channels: int) -> Preprocess:
    """Return the evaluation transform of a recipe."""
    return Preprocess(data.image_size, data.mean, data.std, channels, data.crop)


def augmentation(recipe: Recipe, preprocess: Preprocess) -> Augment:
    """Return the training transform of a recipe."""
    options = dataclasses.asdict(recipe.augment)
    # These work on batches; see `data.Mix`.
    for key in ("mixup", "cutmix", "mix_chance", "mix_epochs"):
        del options[key]
    return Augment(preprocess, **options)


@torch.no_grad()
def recalibrate(model: Backbone, images: Iterable[Tensor], timesteps: int) -> None:
    """Re-estimate the running statistics of all batch norms as plain means over `images`.

    The moving averages of training follow the last few batches only, which are noisy where batches
    and maps are small.

    Args:
        model: Left in training mode.
        images: Batches `[B, C, H, W]`, or frames `[B, T, C, H, W]`, varied as in training.
        timesteps: How often an image is shown, or how many frames there are.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for count, batch in enumerate(images, start=1):
        for norm in norms:
            norm.momentum = 1 / count
        model(over_time(batch, timesteps))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def evaluate(
    model: Backbone, batches: Iterable[Batch], task: Task, classes: int, ranks: Ranks
) -> dict[str, Any]:
    """Return the figures of a model on this process' part of a data set, summed over all of them.

    Args:
        model: Its training mode is restored.
        batches: Images `[B, C, H, W]`, or frames `[B, T, C, H, W]`, and labels `[B]`.
        task: Reads out and measures.
        classes: Number of classes.
        ranks: The processes that share the work.

    Returns:
        What the task's metric computes; see for example `tasks.Accuracy.compute`.
    """
    metric = task.metric(classes)
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    for images, labels in batches:
        metric.update(task.predict(model, images.to(ranks.device, parameter.dtype)), labels)
    model.train(was_training)
    metric.counts = {name: ranks.total(count) for name, count in metric.counts.items()}
    return metric.compute()


def held_out_batches(
    recipe: Recipe, dataset: ImageDataset, preprocess: Preprocess, ranks: Ranks
) -> EpochBatches:
    """Return this process' part of the held-out images, in their order."""
    return epoch_batches(
        dataset,
        preprocess,
        batch_size=100 * ranks.count,
        seed=0,
        epoch=0,
        shuffle=False,
        workers=recipe.data.workers,
        rank=ranks.rank,
        ranks=ranks.count,
        unreadable=recipe.data.unreadable,
    )


def open_test_set(
    recipe: Recipe, root: str | None, ranks: Ranks
) -> tuple[ImageDataset, EpochBatches]:
    """Return the test split of a recipe's data and this process' batches of it.

    Args:
        recipe: Names the data and says how they are prepared.
        root: Folder of the data, if it is not where the recipe says.
        ranks: The processes that share the work.
    """
    timesteps = recipe.train.timesteps
    dataset = load_dataset(recipe.data.name, root or recipe.data.root, "test", timesteps)
    preprocess = preprocessing(recipe.data, dataset.channels)
    return dataset, held_out_batches(recipe, dataset, preprocess, ranks)


def load_trained(path: str | Path) -> tuple[Backbone, Recipe, dict[str, Any]]:
    """Return the model of a training checkpoint, its recipe and how far it has come (`Progress`).

    Raises:
        CheckpointError: If the file is damaged, holds weights without a recipe, or was only
            pre-trained, so that it knows no classes.
    """
    model, recipe, progress = load_run(path)
    if recipe.pretrain is not None:
        raise CheckpointError(
            f"{path} was pre-trained without labels and knows no classes: fine-tune from it with "
            f"model.weights={path}"
        )
    return model, recipe, progress


def load_run(path: str | Path) -> tuple[Backbone, Recipe, dict[str, Any]]:
    """Return what `load_trained` returns, for a model that was only pre-trained as well.

    Raises:
        CheckpointError: If the file is damaged or holds weights without a recipe.
    """
    model = load_model(path)
    header = read_checkpoint(path)[1]
    if "recipe" not in header:
        raise CheckpointError(f"{path} holds a model without a recipe: it was not made by training")
    return model, recipe_from_dict(header["recipe"]), header["progress"]


def evaluate_checkpoint(
    path: str | Path, root: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """Evaluate a training checkpoint on the test split of its data; only that split is read.

    Args:
        path: `best.safetensors` or `last.safetensors` of a run.
        root: Folder of the data, if it is not where it was in training.
        device: For example "cuda"; default: a GPU if there is one.

    Returns:
        The figures of `evaluate` and the mean firing rate, spikes / (neurons * T), over all neurons
        and images.
    """
    with joined(device) as ranks:
        model, recipe, _ = load_run(path)
        if recipe.train.quantize:
            simulate_rounding(model)
        dataset, batches = open_test_set(recipe, root, ranks)
        task = bare_task(recipe)
        with count_spikes(model) as counts:
            figures = evaluate(model.to(ranks.device), batches, task, len(dataset.classes), ranks)
        spikes, places = ranks.total(counts).tolist()
    return {
        **figures,
        "firing_rate": spikes / places if places else None,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "timesteps": recipe.train.timesteps,
    }
