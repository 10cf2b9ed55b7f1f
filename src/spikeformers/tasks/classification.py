"""Classification: encode images into time, read scores out over time, cross entropy, accuracy."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.data import direct
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
    """The task of naming the class of an image.

    Args:
        timesteps: How often the image is shown, T.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
    """

    def __init__(self, timesteps: int, label_smoothing: float = 0.0) -> None:
        self.timesteps = timesteps
        self.label_smoothing = label_smoothing

    def step(self, model: Model, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss to optimise and what is worth logging.

        Further heads of the model, if it has any, learn the same labels; the loss is the mean.

        Args:
            model: In training mode.
            images: `[B, C, H, W]`.
            labels: `[B]`.
        """
        y = model(direct(images, self.timesteps))
        heads = [y.logits, *y.aux.values()] if isinstance(y, Outputs) else [y]
        scores = [model.readout(head).float() for head in heads]
        losses = [
            F.cross_entropy(score, labels, label_smoothing=self.label_smoothing) for score in scores
        ]
        hits = (scores[0].argmax(1) == labels).sum()
        return {"loss": torch.stack(losses).mean(), "hits": hits.detach()}

    @torch.no_grad()
    def predict(self, model: Model, images: Tensor) -> Tensor:
        """Return the scores `[T, B, K]` read out after 1, 2, ..., T steps; the last ones count.

        Args:
            model: In eval mode.
            images: `[B, C, H, W]`.
        """
        y = model(direct(images, self.timesteps)).float()
        return torch.stack([model.readout(y[: t + 1]) for t in range(len(y))])

    def metric(self, num_classes: int) -> "Accuracy":
        """Return an empty accuracy counter."""
        return Accuracy(self.timesteps, num_classes)


class Accuracy:
    """Counts hits over batches.

    Args:
        timesteps: Steps T of the scores that will come.
        num_classes: Classes K.
    """

    def __init__(self, timesteps: int, num_classes: int) -> None:
        self.hits = torch.zeros(timesteps, dtype=torch.long)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
        self.top5_hits = 0
        self.loss = 0.0

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count one batch: scores `[T, B, K]` after 1..T steps, labels `[B]`."""
        scores, labels = scores.cpu(), labels.cpu()
        self.hits += (scores.argmax(2) == labels).sum(1)
        best = scores[-1].topk(min(5, scores.shape[2])).indices
        self.top5_hits += int((best == labels[:, None]).sum())
        self.loss += F.cross_entropy(scores[-1], labels, reduction="sum").item()
        self.confusion.index_put_((labels, best[:, 0]), torch.ones_like(labels), accumulate=True)

    def compute(self) -> dict[str, Any]:
        """Return percentages, the mean loss and the confusion matrix (row: true class)."""
        images = int(self.confusion.sum())
        per_step = [round(100 * int(hits) / images, 4) for hits in self.hits]
        return {
            "top1": per_step[-1],
            "top5": round(100 * self.top5_hits / images, 4),
            "top1_per_step": per_step,
            "loss": self.loss / images,
            "images": images,
            "confusion": self.confusion.tolist(),
        }
