"""Losses against their formulas, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.tasks import (
    TET,
    Classification,
    CrossEntropy,
    Distillation,
    SurrogateAgreement,
)
from spikeformers.types import Outputs

T, B, K = 3, 4, 5


def mean(y: Tensor) -> Tensor:
    return y.mean(0)


@pytest.fixture
def y() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(T, B, K, dtype=torch.float64)


LABELS = torch.tensor([0, 4, 2, 1])


def test_cross_entropy_is_of_the_read_out_scores(y: Tensor) -> None:
    by_hand = -y.mean(0).log_softmax(1)[torch.arange(B), LABELS].mean()
    torch.testing.assert_close(CrossEntropy()(y, mean, LABELS), by_hand)
    smooth = CrossEntropy(0.1)(y, mean, LABELS)
    targets = F.one_hot(LABELS, K) * 0.9 + 0.1 / K
    torch.testing.assert_close(smooth, CrossEntropy()(y, mean, targets))
    torch.testing.assert_close(smooth, -(targets * y.mean(0).log_softmax(1)).sum(1).mean())


def test_tet_holds_every_step_to_the_labels(y: Tensor) -> None:
    steps = torch.stack([F.cross_entropy(step, LABELS) for step in y]).mean()
    torch.testing.assert_close(TET(0.0)(y, mean, LABELS), steps)
    pull = (y - 1).square().mean()
    torch.testing.assert_close(TET(0.25)(y, mean, LABELS), 0.75 * steps + 0.25 * pull)
    # Equal steps make no difference to the mean.
    same = y[:1].expand_as(y)
    torch.testing.assert_close(TET(0.0)(same, mean, LABELS), CrossEntropy()(same, mean, LABELS))


def test_hard_distillation_takes_the_teachers_best_class(y: Tensor) -> None:
    answers = torch.randn(B, K, dtype=torch.float64)
    loss = Distillation(lambda _: answers, "hard", 0.5, 1.0)(y.mean(0), torch.empty(0))
    torch.testing.assert_close(loss, F.cross_entropy(y.mean(0), answers.argmax(1)))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_a_divergence(y: Tensor, tau: float) -> None:
    answers = torch.randn(B, K, dtype=torch.float64)
    loss = Distillation(lambda _: answers, "soft", 0.5, tau)(y.mean(0), torch.empty(0))
    p, q = ((s / tau).softmax(1) for s in (answers, y.mean(0)))
    torch.testing.assert_close(loss, tau**2 * (p * (p / q).log()).sum(1).mean())
    agreed = Distillation(lambda _: y.mean(0), "soft", 0.5, tau)(y.mean(0), torch.empty(0))
    assert abs(agreed.item()) < 1e-12


def test_a_teacher_of_other_classes_is_refused(y: Tensor) -> None:
    other = Distillation(lambda _: torch.zeros(B, K + 1), "hard", 0.5, 1.0)
    with pytest.raises(InputError, match=r"the teacher scores \[4, 6\], the student \[4, 5\]"):
        other(y.mean(0), torch.empty(0))
    with pytest.raises(InputError, match="kind='herd'"):
        Distillation(lambda x: x, "herd", 0.5, 1.0)


class TwoHeads:
    """A model whose answers are given."""

    def __init__(self, logits: Tensor, kd: Tensor) -> None:
        self.outputs = Outputs(logits, {"kd": kd})

    def __call__(self, x: Tensor) -> Outputs:
        del x
        return self.outputs

    def readout(self, y: Tensor) -> Tensor:
        return mean(y)


def test_the_second_head_learns_from_the_teacher(y: Tensor) -> None:
    kd, images = y.flip(0, 2), torch.rand(B, 3, 4, 4)
    model = TwoHeads(y, kd)
    answers = torch.randn(B, K, dtype=torch.float64)
    agreement = Distillation(lambda _: answers, "hard", 0.3, 1.0)
    result = Classification(T, distillation=agreement).step(model, images, LABELS)
    labels, teacher = (
        F.cross_entropy(mean(y), LABELS),
        F.cross_entropy(mean(kd), answers.argmax(1)),
    )
    torch.testing.assert_close(result["loss"], 0.7 * labels + 0.3 * teacher)
    # Without a teacher both heads learn the labels.
    untaught = Classification(T).step(model, images, LABELS)["loss"]
    torch.testing.assert_close(untaught, (labels + F.cross_entropy(mean(kd), LABELS)) / 2)


def test_hits_of_mixed_images_count_the_larger_share(y: Tensor) -> None:
    targets = 0.6 * F.one_hot(mean(y).argmax(1), K) + 0.4 / K
    result = Classification(T).step(TwoHeads(y, y), torch.rand(B, 3, 4, 4), targets)
    assert result["hits"] == B


def test_surrogate_modules_and_the_main_head_learn_from_each_other(y: Tensor) -> None:
    others = [y.flip(0, 2).mean(0), y.roll(1, 2).mean(0)]
    loss = SurrogateAgreement(0.3, temperature=2.0)([mean(y), *others])
    p, *rest = ((s / 2).softmax(1) for s in (mean(y), *others))
    both = [(p * (p / q).log()).sum(1).mean() + (q * (q / p).log()).sum(1).mean() for q in rest]
    torch.testing.assert_close(loss, torch.stack(both).mean())
    assert SurrogateAgreement(0.3)([mean(y), mean(y)]).abs() < 1e-12
    with pytest.raises(InputError, match="the model has no surrogate modules"):
        SurrogateAgreement(0.3)([mean(y)])


def test_targets_of_the_agreement_have_no_gradient(y: Tensor) -> None:
    """KL(q || p) pulls p by `softmax - target`; the pull of KL(p || q) on p is left out."""
    main, other = mean(y).requires_grad_(), mean(y.flip(0, 2)).requires_grad_()
    SurrogateAgreement(0.3, temperature=1.0)([main, other]).backward()
    pull = (main.softmax(1) - other.softmax(1)).detach() / B
    torch.testing.assert_close(main.grad, pull)
    torch.testing.assert_close(other.grad, -pull)


def test_surrogate_modules_learn_labels_and_agreement(y: Tensor) -> None:
    surrogate, images = y.flip(0, 2), torch.rand(B, 3, 4, 4)
    agreement = SurrogateAgreement(0.25)
    task = Classification(T, surrogates=agreement)
    loss = task.step(TwoHeads(y, surrogate), images, LABELS)["loss"]
    labels = (F.cross_entropy(mean(y), LABELS) + F.cross_entropy(mean(surrogate), LABELS)) / 2
    torch.testing.assert_close(loss, 0.75 * labels + 0.25 * agreement([mean(y), mean(surrogate)]))
