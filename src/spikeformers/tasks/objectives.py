"""What per-step scores `[T, B, K]` are trained towards: labels, and a teacher's answers."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.errors import InputError

Readout = Callable[[Tensor], Tensor]
"""Scores `[B, K]` of per-step scores `[T, B, K]`."""


class Objective(Protocol):
    """A loss of per-step scores."""

    def __call__(self, y: Tensor, readout: Readout, targets: Tensor) -> Tensor:
        """Return a scalar; targets are classes `[B]` or probabilities `[B, K]`."""
        ...


class CrossEntropy:
    """Cross entropy of the scores that are read out over time.

    Args:
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, y: Tensor, readout: Readout, targets: Tensor) -> Tensor:
        """Return the loss of one batch."""
        return F.cross_entropy(wide(readout(y)), targets, label_smoothing=self.label_smoothing)


class TET:
    """Temporal efficient training: every step is held to the labels by itself.

    `(1 - w) mean_t CE(y[t], target) + w mean (y - 1)^2`. The second term keeps single steps from
    shouting.

    Args:
        weight: The weight `w` of the second term, in [0, 1].
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Reference:
        Deng et al., "Temporal Efficient Training of Spiking Neural Network via Gradient
        Re-weighting", ICLR 2022, arXiv:2202.11946, eq. 9 to 12.
    """

    def __init__(self, weight: float, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing

    def __call__(self, y: Tensor, readout: Readout, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch."""
        y = wide(y)
        losses = [
            F.cross_entropy(step, targets, label_smoothing=self.label_smoothing) for step in y
        ]
        pull = (y - 1).square().mean()
        return (1 - self.weight) * torch.stack(losses).mean() + self.weight * pull


class Distillation:
    """Agreement with a teacher.

    `hard`: cross entropy with the teacher's best class. `soft`: `tau^2 KL(teacher || student)`,
    both softened by the temperature tau.

    Args:
        teacher: Images `[B, C, H, W]` or frames `[B, T, C, H, W]`, as the student gets them, ->
            scores `[B, K]`.
        kind: "hard" or "soft".
        weight: Share of the teacher in the loss, in [0, 1].
        temperature: The tau of `soft`.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531;
        Touvron et al., ICML 2021, arXiv:2012.12877, eq. 2 and 3.
    """

    def __init__(
        self, teacher: Callable[[Tensor], Tensor], kind: str, weight: float, temperature: float
    ) -> None:
        if kind not in ("hard", "soft"):
            raise InputError(f"kind={kind!r}: expected 'hard' or 'soft'")
        self.teacher = teacher
        self.kind = kind
        self.weight = weight
        self.temperature = temperature

    def __call__(self, scores: Tensor, images: Tensor) -> Tensor:
        """Return the loss of the student's scores `[B, K]`."""
        with torch.no_grad():
            answers = self.teacher(images)
        if answers.shape != scores.shape:
            raise InputError(
                f"the teacher scores {list(answers.shape)}, the student {list(scores.shape)}: "
                "take a teacher with the same classes"
            )
        if self.kind == "hard":
            return F.cross_entropy(wide(scores), answers.argmax(1))
        tau = self.temperature
        student, target = (wide(s).div(tau).log_softmax(1) for s in (scores, answers))
        return tau**2 * _divergence(target.to(student.dtype), student)


class SurrogateAgreement:
    """Agreement of the main head with surrogate modules, classifiers that read earlier maps.

    `mean_i [KL(p_i || p_0) + KL(p_0 || p_i)]` for the main head's probabilities `p_0` and those of
    the surrogate modules, `p_1, p_2, ...`, all softened by the temperature. The first distribution
    of each divergence is a target and has no gradient.

    Args:
        weight: Share of the agreement in the loss, in [0, 1]; 0.333 in STMixer.
        temperature: Softens the scores, above 0.

    References:
        Deng et al., "Surrogate Module Learning", ICML 2023; STMixer's code, NeurIPS 2024.
    """

    def __init__(self, weight: float, temperature: float = 3.0) -> None:
        self.weight = weight
        self.temperature = temperature

    def __call__(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the loss of the scores `[B, K]` of all heads, the main one first."""
        if len(scores) < 2:
            raise InputError(
                "the model has no surrogate modules that could agree: create it with "
                "surrogates=True, or leave the agreement out"
            )
        main, *others = (wide(s).div(self.temperature).log_softmax(1) for s in scores)
        terms = [_divergence(p, main) + _divergence(main, p) for p in others]
        return torch.stack(terms).mean()


def _divergence(target: Tensor, learner: Tensor) -> Tensor:
    """Return `KL(target || learner)` of logarithms of probabilities `[B, K]`."""
    return F.kl_div(learner, target.detach(), reduction="batchmean", log_target=True)


def wide(scores: Tensor) -> Tensor:
    """Return 16-bit scores as float32, others as they are."""
    return scores.float() if scores.dtype.itemsize == 2 else scores
