"""Masked autoencoding against its formula, written out."""

import pytest
import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.tasks import MaskedAutoencoding, ReconstructionError
from tests.helpers import assert_same, randn

B, PATCH, ROWS, COLUMNS = 3, 4, 2, 3
N = ROWS * COLUMNS
IMAGES = randn(B, 3, ROWS * PATCH, COLUMNS * PATCH, seed=1)


class Given:
    """A model whose answers are given, and which remembers what it was shown."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def __call__(self, x: Tensor, visible: Tensor) -> Tensor:
        assert x.shape == (2, *IMAGES[: len(visible)].shape)
        self.visible = visible
        return self.y[:, : len(visible)]

    def readout(self, y: Tensor) -> Tensor:
        return y.mean(0)


@pytest.fixture
def model() -> Given:
    return Given(randn(2, B, N, 3 * PATCH**2, seed=2))


def hidden_by(visible: Tensor) -> list[list[int]]:
    return [sorted(set(range(N)) - set(row)) for row in visible.tolist()]


def error_by_hand(y: Tensor, image: Tensor, token: int) -> Tensor:
    """Mean squared error of one token's pixels, which are brought to mean 0 and variance 1."""
    row, column = divmod(token, COLUMNS)
    rows = slice(PATCH * row, PATCH * (row + 1))
    pixels = image[:, rows, PATCH * column : PATCH * (column + 1)].flatten()
    wanted = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
    return (y.mean(0) - wanted).square().mean()


def test_the_loss_is_the_mean_error_of_the_hidden_tokens(model: Given) -> None:
    torch.manual_seed(0)
    loss = MaskedAutoencoding(2, 0.5, PATCH).step(model, IMAGES, torch.zeros(B))["loss"]
    assert model.visible.shape == (B, 3)
    by_hand = [
        error_by_hand(model.y[:, b, n], IMAGES[b], n)
        for b, tokens in enumerate(hidden_by(model.visible))
        for n in tokens
    ]
    assert_same(loss, torch.stack(by_hand).mean())


def test_what_is_said_of_visible_tokens_does_not_count() -> None:
    y = randn(2, B, N, 3 * PATCH**2, seed=2).requires_grad_()
    model = Given(y)
    MaskedAutoencoding(2, 0.5, PATCH).step(model, IMAGES, torch.zeros(B))["loss"].backward()
    counts = y.grad.abs().sum((0, 3)) > 0
    hidden = torch.ones(B, N, dtype=torch.bool).scatter(1, model.visible, False)
    assert torch.equal(counts, hidden)


def test_masks_follow_from_the_seed_and_differ_between_images(model: Given) -> None:
    task, masks = MaskedAutoencoding(2, 0.5, PATCH), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        task.step(model, IMAGES, torch.zeros(B))
        masks.append(model.visible)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert len({tuple(row) for row in masks[0].tolist()}) > 1


@pytest.mark.parametrize(("ratio", "visible"), [(0.01, 5), (0.34, 4), (0.75, 2), (0.99, 1)])
def test_something_is_seen_and_something_is_hidden(
    model: Given, ratio: float, visible: int
) -> None:
    MaskedAutoencoding(2, ratio, PATCH).step(model, IMAGES, torch.zeros(B))
    assert model.visible.shape[1] == visible


def test_held_out_images_always_have_the_same_mask(model: Given) -> None:
    task = MaskedAutoencoding(2, 0.5, PATCH)
    errors = task.predict(model, IMAGES)
    whole = model.visible
    assert errors.shape == (B,) and len({tuple(row) for row in whole.tolist()}) == 1
    torch.manual_seed(5)
    assert_same(task.predict(model, IMAGES[:1]), errors[:1])
    assert torch.equal(model.visible, whole[:1])


def test_the_metric_is_the_mean_over_images() -> None:
    metric = ReconstructionError()
    metric.update(torch.tensor([1.0, 2.0]), torch.zeros(2))
    metric.update(torch.tensor([6.0]), torch.zeros(1))
    assert metric.compute() == {"loss": 3.0, "images": 3}


def test_only_still_images_of_several_tokens_are_taken(model: Given) -> None:
    task = MaskedAutoencoding(2, 0.5, PATCH)
    with pytest.raises(InputError, match=r"shape \[3, 2, 3, 8, 12\]: .* still images"):
        task.step(model, IMAGES[:, None].expand(-1, 2, -1, -1, -1), torch.zeros(B))
    with pytest.raises(InputError, match="4x4 have 1 tokens of 4x4 pixels"):
        task.step(model, IMAGES[:, :, :4, :4], torch.zeros(B))
