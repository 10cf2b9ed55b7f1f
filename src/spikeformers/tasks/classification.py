"""Classification: encode into time, read scores out over time, cross entropy, accuracy."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.data import over_time
from spikeformers.tasks.objectives import (
    CrossEntropy,
    Distillation,
    Objective,
    SurrogateAgreement,
)
from spikeformers.types import Outputs


class Model(Protocol):
    """What a task needs of a model."""

    def __call__(self, x: Tensor) -> Any:
        """Return per-step scores `[T, B, K]`, or `Outputs` in training."""
        ...

    def readout(self, y: Tensor) -> Tensor:
        """Return scores `[B, K]` of per-step scores."""
        ...


class Classification:
    """The task of naming the class of an image or a recording.

    Args:
        timesteps: How often an image is shown, or how many frames a recording has, T.
        objective: What the scores are trained towards.
        distillation: A teacher whose answers are learned beside the labels: by the model's head
            "kd" if it has one, else by its only head.
        surrogates: How the further heads agree with the main one beside learning the labels.
        ponder: Price of the cost that a model whose tokens halt returns beside its scores.
    """

    def __init__(
        self,
        timesteps: int,
        objective: Objective | None = None,
        distillation: Distillation | None = None,
        surrogates: SurrogateAgreement | None = None,
        ponder: float = 0.0,
    ) -> None:
        self.timesteps = timesteps
        self.objective = objective or CrossEntropy()
        self.distillation = distillation
        self.surrogates = surrogates
        self.ponder = ponder

    def step(self, model: Model, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss to optimise and what is worth logging.

        Further heads that no teacher has learn the same targets; their losses are averaged.

        Args:
            model: In training mode.
            images: `[B, C, H, W]`, or frames `[B, T, C, H, W]`.
            targets: Classes `[B]`, or probabilities `[B, K]` where images were mixed.
        """
        y = model(over_time(images, self.timesteps))
        heads = {"logits": y.logits, **y.aux} if isinstance(y, Outputs) else {"logits": y}
        cost = heads.pop("ponder", None)
        taught = heads.pop("kd", heads["logits"]) if self.distillation else None
        losses = [self.objective(head, model.readout, targets) for head in heads.values()]
        loss = torch.stack(losses).mean()
        if self.surrogates:
            agreement = self.surrogates([model.readout(head) for head in heads.values()])
            loss = torch.lerp(loss, agreement, self.surrogates.weight)
        if self.distillation and taught is not None:
            agreement = self.distillation(model.readout(taught), images)
            loss = torch.lerp(loss, agreement, self.distillation.weight)
        if cost is not None:
            loss = loss + self.ponder * cost
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        hits = (model.readout(heads["logits"]).argmax(1) == classes).sum()
        return {"loss": loss, "hits": hits.detach()}

    @torch.no_grad()
    def predict(self, model: Model, images: Tensor) -> Tensor:
        """Return the scores `[T, B, K]` read out after 1, 2, ..., T steps; the last ones count.

        Args:
            model: In eval mode.
            images: `[B, C, H, W]`, or frames `[B, T, C, H, W]`.
        """
        y = model(over_time(images, self.timesteps)).float()
        return torch.stack([model.readout(y[: t + 1]) for t in range(len(y))])

    def metric(self, num_classes: int) -> "Accuracy":
        """Return an empty accuracy counter."""
        return Accuracy(self.timesteps, num_classes)


class Accuracy:
    """Counts hits over batches.

    Args:
        timesteps: Steps T of the scores that will come.
        num_classes: Classes K.

    Attributes:
        counts: All that was counted, by name; sums of it over processes count for all of them.
    """

    def __init__(self, timesteps: int, num_classes: int) -> None:
        self.counts = {
            "hits": torch.zeros(timesteps, dtype=torch.long),
            "top5_hits": torch.zeros(timesteps, dtype=torch.long),
            "confusion": torch.zeros(num_classes, num_classes, dtype=torch.long),
            "loss": torch.zeros((), dtype=torch.float64),
        }

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count one batch: scores `[T, B, K]` after 1..T steps, labels `[B]`."""
        scores, labels = scores.cpu(), labels.cpu()
        best = scores.topk(min(5, scores.shape[2])).indices
        right = best == labels[:, None]
        self.counts["hits"] += right[..., 0].sum(1)
        self.counts["top5_hits"] += right.any(2).sum(1)
        self.counts["loss"] += F.cross_entropy(scores[-1], labels, reduction="sum")
        cells = (labels, best[-1, :, 0])
        self.counts["confusion"].index_put_(cells, torch.ones_like(labels), accumulate=True)

    def compute(self) -> dict[str, Any]:
        """Return percentages, the mean loss and the confusion matrix (row: true class)."""
        images = int(self.counts["confusion"].sum())
        top1, top5 = (
            [round(100 * int(hits) / images, 4) for hits in self.counts[name]]
            for name in ("hits", "top5_hits")
        )
        return {
            "top1": top1[-1],
            "top5": top5[-1],
            "top1_per_step": top1,
            "top5_per_step": top5,
            "loss": self.counts["loss"].item() / images,
            "images": images,
            "confusion": self.counts["confusion"].tolist(),
        }
