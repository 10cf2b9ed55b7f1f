"""A model in training: all that the next step depends on, besides the recipe and the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from spikeformers.errors import ConfigError
from spikeformers.layers import Trunk
from spikeformers.models import Backbone, create_model
from spikeformers.train.distributed import Ranks, replicate, shard, whole
from spikeformers.train.optim import make_optimizer
from spikeformers.train.recipe import Recipe, TrainSection
from spikeformers.transform import accelerate, compile_spiking, simulate_rounding

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        classes: Names of the classes.
        epoch: Finished epochs, their evaluation included.
        step: Finished optimiser steps.
        counts: Loss, hits and images of the unfinished epoch, summed over images.
        best_epoch: Epoch of the best held-out accuracy so far; of the lowest held-out loss where
            there is no accuracy.
        top1: That accuracy, in percent.
        loss: The held-out loss of that epoch.
        top1_last: The held-out accuracy that was measured last.
        seconds: Time spent training, interruptions left out.
        peak_memory_mib: Most memory that training has held; see `log.peak_memory`.
    """

    classes: list[str]
    epoch: int = 0
    step: int = 0
    counts: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    best_epoch: int = 0
    top1: float | None = None
    loss: float | None = None
    top1_last: float | None = None
    seconds: float = 0.0
    peak_memory_mib: float | None = None

    def is_beaten_by(self, figures: Mapping[str, Any]) -> bool:
        """Whether these figures are the best so far."""
        if "top1" in figures:
            return self.top1 is None or figures["top1"] > self.top1
        return self.loss is None or figures["loss"] < self.loss


@dataclass
class Training:
    """A model in training.

    Attributes:
        model: The weights.
        called: What to call in training: the model, its accelerated or its compiled twin.
        parallel: The same in a wrapper that averages gradients over the processes.
        average: The moving average of the weights, if one is kept.
        optimizer: Its moments.
        scaler: The loss scale of float16.
        precision: As in the recipe.
        ranks: The processes at work.
        done: The position.
    """

    model: Backbone
    called: nn.Module
    parallel: Any
    average: AveragedModel | None
    optimizer: Optimizer
    scaler: GradScaler
    precision: str
    ranks: Ranks
    done: Progress

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def evaluated(self) -> Backbone:
        """The model that is evaluated and saved as best: the average if there is one."""
        return self.model if self.average is None else cast(Backbone, self.average.module)

    def whole_evaluated(self) -> Backbone:
        """Return that model with all its weights in this process, also where they are sharded."""
        state = self.evaluated.state_dict()
        if not any(isinstance(tensor, DTensor) for tensor in state.values()):
            return self.evaluated
        config = self.model.config
        with torch.device("meta"):
            model = create_model(config.name, **config.overrides)
        model.to(self.dtype).to_empty(device=self.ranks.device)
        model.load_state_dict({name: whole(tensor) for name, tensor in state.items()})
        return model

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.ranks.device.type, dtype, enabled=dtype is not None)


def prepare(recipe: Recipe, model: Backbone, classes: tuple[str, ...], ranks: Ranks) -> Training:
    """Bring a new model to its device and put around it what the recipe asks for.

    Raises:
        ConfigError: If parts of the recipe exclude each other.
    """
    settings = recipe.train
    if settings.sharded and settings.precision == "float16":
        raise ConfigError("train.sharded=true with train.precision=float16: choose bfloat16")
    if settings.compile and settings.accelerate:
        raise ConfigError(
            f"train.compile=true with train.accelerate={settings.accelerate}: both replace the "
            "readable model, choose one (train.accelerate=null)"
        )
    if settings.quantize and (settings.accelerate or settings.compile or settings.sharded):
        raise ConfigError(
            f"train.quantize={settings.quantize} rounds the weights of the readable model: set "
            "train.accelerate=null, train.compile=false and train.sharded=false"
        )
    trunks = [module for module in model.modules() if isinstance(module, Trunk)]
    if settings.recompute and not trunks:
        raise ConfigError(f"train.recompute=true: {recipe.model.name} has no trunk to recompute")
    for trunk in trunks:
        trunk.recomputes = settings.recompute
    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    model.to(ranks.device, dtype)
    # Convolutions are fastest so, but weights can only be sharded in rows.
    layout = torch.contiguous_format if settings.sharded else torch.channels_last
    model.to(memory_format=layout)  # type: ignore[call-overload]
    if settings.quantize:
        simulate_rounding(model)
    average = None
    if settings.ema_decay is not None:
        moving = partial(_move_towards, settings.ema_decay)
        average = AveragedModel(model, multi_avg_fn=moving, use_buffers=True)
    called = accelerate(model, settings.accelerate) if settings.accelerate else model
    if settings.sharded:
        shard(cast(Backbone, called), ranks)
        if average is not None:
            shard(cast(Backbone, average.module), ranks)
    called = compile_spiking(called) if settings.compile else called
    return Training(
        model=model,
        called=called,
        parallel=called if settings.sharded else replicate(called, ranks),
        average=average,
        optimizer=make_optimizer(model, settings),
        scaler=GradScaler(ranks.device.type, enabled=settings.precision == "float16"),
        precision=settings.precision,
        ranks=ranks,
        done=Progress(list(classes)),
    )


@torch.no_grad()
def _move_towards(
    decay: float, averages: Sequence[Tensor], tensors: Sequence[Tensor], count: Tensor
) -> None:
    """Step an exponential moving average; one tensor at a time, since some may be sharded.

    While it is young it forgets faster: the random start would silence the neurons for long.
    """
    decay = min(decay, (1 + int(count)) / (10 + int(count)))
    for average, tensor in zip(averages, tensors, strict=True):
        if average.is_floating_point():
            average.lerp_(tensor, 1 - decay)
        else:
            average.copy_(tensor)


def steps_per_epoch(settings: TrainSection, images: int, ranks: Ranks) -> int:
    """Return how many whole batches the training images fill.

    Raises:
        ConfigError: If they fill none, or a batch cannot be split evenly.
    """
    parts = ranks.count * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(
            f"train.batch_size={settings.batch_size} is not divisible by {ranks.count} processes "
            f"times train.accumulate={settings.accumulate}: choose a multiple of {parts}"
        )
    if settings.batch_size > images:
        raise ConfigError(
            f"train.batch_size={settings.batch_size}, but there are {images} images to "
            "train on: choose a smaller one"
        )
    return images // settings.batch_size
