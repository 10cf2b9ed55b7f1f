"""Mixing batches."""

import pytest
import torch

from spikeformers.data import Mix
from spikeformers.errors import InputError

IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
LABELS = torch.tensor([0, 1, 2, 3])


def test_without_mixing_nothing_changes() -> None:
    images, labels = Mix(0, 0, 5)(IMAGES, LABELS)
    assert images is IMAGES and labels is LABELS


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_targets_say_what_is_in_the_image(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    mix = Mix(mixup, cutmix, 5)
    for _ in range(10):
        images, targets = mix(IMAGES, LABELS)
        assert images.shape == IMAGES.shape and targets.shape == (4, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        # Image i holds the value i, so its mean is the label's expectation.
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(5.0))


def test_a_share_of_the_batches_is_mixed() -> None:
    torch.manual_seed(0)
    mix = Mix(0.5, 0, 5, chance=0.3)
    mixed = [mix(IMAGES, LABELS)[0] is not IMAGES for _ in range(400)]
    assert 0.2 < sum(mixed) / 400 < 0.4
    images, labels = Mix(0.5, 0, 5, chance=0)(IMAGES, LABELS)
    assert images is IMAGES and labels is LABELS


def test_randomness_is_torchs_alone() -> None:
    mix = Mix(0.5, 0.5, 5)
    torch.manual_seed(3)
    first = [mix(IMAGES, LABELS) for _ in range(5)]
    torch.manual_seed(3)
    for images, targets in first:
        again = mix(IMAGES, LABELS)
        assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    assert len({float(targets.max()) for _, targets in first}) > 1


def test_one_image_and_bad_numbers() -> None:
    images, targets = Mix(0.5, 0.0, 5)(IMAGES[:1], LABELS[:1])
    assert images.shape == (1, 3, 8, 8) and targets[0, 0] == pytest.approx(1)
    with pytest.raises(InputError, match="cutmix is -1"):
        Mix(0, -1, 5)
    with pytest.raises(InputError, match="mixup is nan"):
        Mix(float("nan"), 0, 5)
    with pytest.raises(InputError, match=r"chance is 1\.5, expected a share"):
        Mix(0.5, 0, 5, chance=1.5)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0)])
def test_the_frames_of_a_recording_are_mixed_alike(mixup: float, cutmix: float) -> None:
    mix, frames = Mix(mixup, cutmix, 5), torch.stack([IMAGES] * 6, 1)
    torch.manual_seed(1)
    expected = mix(IMAGES, LABELS)
    torch.manual_seed(1)
    found = mix(frames, LABELS)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], torch.stack([expected[0]] * 6, 1))
