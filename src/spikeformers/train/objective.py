"""What a recipe trains for: its objective, and the teacher that it may name."""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.data import over_time
from spikeformers.data._timm import import_timm
from spikeformers.errors import ConfigError
from spikeformers.tasks import (
    TET,
    Classification,
    CrossEntropy,
    Distillation,
    Objective,
    SurrogateAgreement,
    Task,
)
from spikeformers.train.distributed import is_first_rank
from spikeformers.train.evaluate import bare_task, load_trained
from spikeformers.train.recipe import DistillSection, Recipe

_TIMM = "timm/"


def make_task(recipe: Recipe, device: torch.device) -> Task:
    """Return what a recipe trains for, its teacher included.

    Raises:
        ConfigError: If the teacher cannot be loaded or does not fit, or a pre-training is told to
            do what it cannot.
    """
    settings, distill = recipe.train, recipe.distill
    if recipe.pretrain is not None:
        _check_pretraining(recipe)
        return bare_task(recipe)
    objective: Objective = CrossEntropy(settings.label_smoothing)
    if settings.tet is not None:
        objective = TET(settings.tet, settings.label_smoothing)
    surrogates = None if settings.sml is None else SurrogateAgreement(settings.sml)
    if distill is None:
        return Classification(
            settings.timesteps, objective, surrogates=surrogates, ponder=settings.ponder or 0
        )
    teacher = load_teacher(distill, recipe, device)
    agreement = Distillation(teacher, distill.kind, distill.weight, distill.temperature)
    return Classification(
        settings.timesteps, objective, agreement, surrogates, settings.ponder or 0
    )


def _check_pretraining(recipe: Recipe) -> None:
    """Refuse settings that a training without labels, or on parts of images, would ignore."""
    settings = recipe.train
    for key, value in (
        ("augment.mixup", recipe.augment.mixup),
        ("augment.cutmix", recipe.augment.cutmix),
        ("train.label_smoothing", settings.label_smoothing),
        ("train.tet", settings.tet),
        ("train.sml", settings.sml),
        ("train.ponder", settings.ponder),
        ("train.recalibration_batches", settings.recalibration_batches),
        ("distill", recipe.distill),
    ):
        if value:
            raise ConfigError(f"{key} is set, but does not apply to pre-training: leave it out")


class Teacher:
    """A frozen model that answers for the student's images.

    The student's normalisation is undone and the teacher's applied; where the teacher was trained
    on another size, the images are resized.

    Args:
        score: Images as the teacher knows them `[B, C, S, S]`, or frames `[B, T, C, S, S]`, ->
            scores `[B, K]`.
        student: Mean and standard deviation per channel of the images that will come.
        teacher: Those that the teacher was trained with.
        image_size: Side S that the teacher was trained with.
        device: Where it computes.
    """

    def __init__(
        self,
        score: Callable[[Tensor], Tensor],
        student: tuple[list[float], list[float]],
        teacher: tuple[list[float], list[float]],
        image_size: int,
        device: torch.device,
    ) -> None:
        self.score = score
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(values, device=device).view(-1, 1, 1) for values in pair]
            for pair in (student, teacher)
        )
        self.gain, self.offset = std / own_std, (mean - own_mean) / own_std
        self.size = (image_size, image_size)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores `[B, K]` of the student's images or frames."""
        x = images.float() * self.gain + self.offset
        if x.shape[-2:] != self.size:
            resized = F.interpolate(x.flatten(0, -4), self.size, mode="bilinear", antialias=True)
            x = resized.view(*x.shape[:-2], *self.size)
        return self.score(x)


def load_teacher(distill: DistillSection, recipe: Recipe, device: torch.device) -> Teacher:
    """Return the teacher that a recipe names.

    Raises:
        ConfigError: If it cannot be loaded, or knows other channels or classes than the student.
    """
    if distill.teacher.startswith(_TIMM):
        return _timm_teacher(distill.teacher.removeprefix(_TIMM), recipe, device)
    model, taught, _ = load_trained(distill.teacher)
    _check("model.in_channels", taught.model.in_channels, recipe.model.in_channels)
    _check("model.num_classes", taught.model.num_classes, recipe.model.num_classes)
    model.to(device)

    def score(x: Tensor) -> Tensor:
        scores: Tensor = model.readout(model(over_time(x, taught.train.timesteps)))
        return scores

    own = taught.data
    student = (recipe.data.mean, recipe.data.std)
    return Teacher(score, student, (own.mean, own.std), own.image_size, device)


def _timm_teacher(name: str, recipe: Recipe, device: torch.device) -> Teacher:
    timm = import_timm()
    if is_first_rank():
        message = f"teacher {name}: timm downloads its weights unless they are in its cache"
        print(message, file=sys.stderr)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    # timm and the hub raise errors of many kinds for unknown names and for missing networks.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"distill.teacher=timm/{name} cannot be loaded: {reason}") from error
    config = timm.data.resolve_model_data_config(model)
    _check("model.in_channels", config["input_size"][0], recipe.model.in_channels)
    _check("model.num_classes", model.num_classes, recipe.model.num_classes)
    student = (recipe.data.mean, recipe.data.std)
    own = (list(config["mean"]), list(config["std"]))
    return Teacher(model.eval().to(device), student, own, config["input_size"][1], device)


def _check(key: str, teachers: object, students: object) -> None:
    if teachers != students:
        raise ConfigError(
            f"the teacher has {key}={teachers}, the student {students}: take a teacher that was "
            "trained on the same kind of data"
        )
