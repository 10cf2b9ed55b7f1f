"""The optimiser and its schedule, both functions of the recipe and the step alone."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from spikeformers.data._timm import import_timm
from spikeformers.errors import ConfigError
from spikeformers.models import Backbone, Stage
from spikeformers.train.recipe import TrainSection


def make_optimizer(model: Backbone, settings: TrainSection) -> Optimizer:
    """Return AdamW, LAMB or SGD over the model's parameters.

    Weight decay spares norms, biases and neurons (all tensors below 2-d). Each group carries its
    share of the learning rate as `scale`: `layer_decay` to the power of the layers above it.

    Raises:
        ConfigError: If LAMB is asked to work on sharded weights.

    References:
        AdamW: Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101.
        LAMB: You et al., ICLR 2020, arXiv:1904.00962, with the ratio of norms clipped at 1.
        Layer decay: Clark et al. (ELECTRA), ICLR 2020, arXiv:2003.10555.
    """
    rate = peak_learning_rate(settings)
    groups: list[dict[str, Any]] = []
    for above, layer in enumerate(reversed(_layers(model))):
        trained = [p for p in layer.parameters() if p.requires_grad]
        for decay, parameters in (
            (settings.weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            scale = settings.layer_decay**above
            groups.append({"params": parameters, "weight_decay": decay, "scale": scale})
    if settings.layer_decay == 1:
        groups = _joined(groups)
    options: dict[str, Any] = {}
    if settings.beta2 is not None:
        options["betas"] = (0.9, settings.beta2)
    if settings.epsilon is not None:
        options["eps"] = settings.epsilon
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=rate, fused=True, **options)
    if settings.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=settings.momentum)
    if settings.sharded:
        raise ConfigError(
            "train.optimizer=lamb with train.sharded=true: LAMB needs the norm of whole weights; "
            "choose adamw or sgd, or sharded=false"
        )
    lamb = import_timm().optim.Lamb
    # Clipping the gradient is the loop's business, for every optimiser alike.
    optimizer: Optimizer = lamb(groups, lr=rate, max_grad_norm=None, trust_clip=True, **options)
    return optimizer


def _layers(model: Backbone) -> list[nn.Module]:
    """Return the parts that a layer's number counts, from the image to the scores."""
    layers: list[nn.Module] = []
    for stage in model.stages:
        assert isinstance(stage, Stage)
        layers += [stage.embed, *stage.blocks.children()]
    return layers if model.head is None else [*layers, model.head]


def _joined(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups that differ in nothing but their parameters, for fewer calls per step."""
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        key = group["weight_decay"], group["scale"]
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())


def peak_learning_rate(settings: TrainSection) -> float:
    """Return the peak rate at the recipe's batch size.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677: linear scaling.
    """
    return settings.learning_rate * _batch_scale(settings)


def learning_rate_at(step: int, steps_per_epoch: int, settings: TrainSection) -> float:
    """Return the rate of a step: linear warm-up to the peak, then half a cosine down.

    Args:
        step: Number of the step in the whole run, from 0.
        steps_per_epoch: Steps of an epoch.
        settings: The recipe's training section.
    """
    peak = peak_learning_rate(settings)
    final = settings.final_learning_rate * _batch_scale(settings)
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def _batch_scale(settings: TrainSection) -> float:
    return settings.batch_size / (settings.reference_batch or settings.batch_size)
