import pickle
import random
import sys

import numpy as np
import pytest
import torch

from spikeformers.data import Augment, Preprocess
from spikeformers.data._torchvision import _torchvision
from spikeformers.errors import InputError, MissingExtraError

GREY = dict(mean=(0.5,), std=(0.25,), channels=1)
EVERY_CHANGE = dict(
    flip=True,
    crop_padding=2,
    rotate=10,
    translate=0.1,
    scale=0.1,
    rand_augment_ops=2,
    rand_augment_magnitude=5,
)


def random_image(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_preprocess_scales_and_normalises():
    image = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    result = Preprocess(2, **GREY)(image)
    assert result.dtype == torch.float32
    expected = torch.tensor([[[-2.0, 2.0], [-1.2, -0.4]]])
    torch.testing.assert_close(result, expected)


def test_preprocess_normalises_each_channel():
    image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    result = Preprocess(4, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0), channels=3)(image)
    assert result[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(3, 20, 31), (3, 33, 17), (3, 8, 9), (3, 5, 5), (3, 1, 7)])
def test_preprocess_equals_torchvisions_resize_and_centre_crop(shape):
    image = random_image(*shape)
    result = Preprocess(11, mean=(0.0,) * 3, std=(1.0,) * 3, channels=3)(image)
    v2 = _torchvision().transforms.v2
    resized = v2.functional.resize(image / 255, 11, antialias=True)
    assert result.shape == (3, 11, 11)
    height, width = resized.shape[1:]
    top, left = (height - 11) // 2, (width - 11) // 2
    torch.testing.assert_close(result, resized[:, top : top + 11, left : left + 11])


def test_preprocess_cuts_the_centre():
    image = torch.zeros(1, 4, 12, dtype=torch.uint8)
    image[:, :, 4:8] = 255
    assert torch.equal(Preprocess(4, **GREY)(image), torch.full((1, 4, 4), 2.0))


def test_preprocess_of_a_batch_equals_that_of_its_images():
    preprocess = Preprocess(8, **GREY)
    images = random_image(3, 1, 6, 10)
    one_by_one = torch.stack([preprocess(image) for image in images])
    torch.testing.assert_close(preprocess(images), one_by_one)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 4), "images is torch.float32 .* expected uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"\[4, 4\], expected uint8 \[C, H, W\]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "images has 3 channels, expected 1: read"),
    ],
)
def test_preprocess_refuses_other_images(image, message):
    with pytest.raises(InputError, match=message):
        Preprocess(4, **GREY)(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(image_size=0), "image_size is 0"),
        (dict(mean=(0.5, 0.5)), "mean has 2 values, expected one for each of the 1 channels"),
        (dict(std=()), "std has 0 values"),
        (dict(std=(0.0,)), "std is .* expected positive values"),
    ],
)
def test_preprocess_refuses_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**{"image_size": 4, **GREY, **arguments})


def test_augment_changes_nothing_by_default():
    preprocess = Preprocess(8, **GREY)
    image = random_image(1, 6, 10)
    state = torch.get_rng_state()
    assert torch.equal(Augment(preprocess)(image), preprocess(image))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["every", *sorted(set(EVERY_CHANGE) - {"rand_augment_magnitude"})])
def test_augment_keeps_shape_and_range(channels, name):
    changes = EVERY_CHANGE if name == "every" else {name: EVERY_CHANGE[name]}
    preprocess = Preprocess(8, (0.0,) * channels, (1.0,) * channels, channels)
    augment = Augment(preprocess, **changes)
    image = random_image(channels, 8, 8)
    torch.manual_seed(0)
    results = [augment(image) for _ in range(20)]
    assert any(not torch.equal(result, preprocess(image)) for result in results)
    for result in results:
        assert (result.shape, result.dtype) == ((channels, 8, 8), torch.float32)
        assert result.min() >= 0 and result.max() <= 1 + 1e-6


def test_augment_flip_mirrors_half_of_the_images():
    preprocess = Preprocess(4, **GREY)
    augment = Augment(preprocess, flip=True)
    image = random_image(1, 4, 4)
    torch.manual_seed(0)
    mirrored = [torch.equal(augment(image), preprocess(image.flip(-1))) for _ in range(200)]
    assert 70 < sum(mirrored) < 130


def test_augment_crop_shifts_by_at_most_the_padding():
    augment = Augment(Preprocess(9, **GREY), crop_padding=2)
    image = torch.zeros(1, 9, 9, dtype=torch.uint8)
    image[0, 4, 4] = 255
    torch.manual_seed(0)
    positions = {tuple((augment(image)[0] > 0).nonzero()[0].tolist()) for _ in range(300)}
    assert positions == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_augment_rotation_fills_with_black_before_normalisation():
    augment = Augment(Preprocess(16, **GREY), rotate=45)
    white = torch.full((1, 16, 16), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    results = torch.cat([augment(white) for _ in range(20)])
    assert results[:, 0, 0].min() == -2.0
    assert (results[:, 8, 8] == 2.0).all()


def test_augment_survives_pickling_without_torchvisions_objects():
    augment = Augment(Preprocess(8, **GREY), **EVERY_CHANGE)
    pickled = pickle.dumps(augment)
    assert b"torchvision" not in pickled.replace(b"_torchvision", b"")
    image = random_image(1, 8, 8)
    results = []
    for transform in (augment, pickle.loads(pickled)):
        torch.manual_seed(3)
        results.append(transform(image))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "argument",
    [
        dict(crop_padding=-1),
        dict(rotate=-10),
        dict(rotate=float("nan")),
        dict(translate=1.5),
        dict(scale=1.0),
        dict(rand_augment_ops=-1),
        dict(rand_augment_magnitude=31),
    ],
)
def test_augment_refuses_values_out_of_range(argument):
    with pytest.raises(InputError, match=f"{next(iter(argument))} is .* expected 0 to"):
        Augment(Preprocess(8, **GREY), **argument)


def test_augment_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    Augment(Preprocess(8, **GREY))
    with pytest.raises(MissingExtraError, match=r"'torchvision'.*spikeformers\[train\]"):
        Augment(Preprocess(8, **GREY), flip=True)


RGB = dict(mean=(0.25, 0.5, 0.75), std=(1.0, 1.0, 1.0), channels=3)
POLICY = "rand-m9-mstd0.5-inc1"


def seeded(transform, image, seed=3):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return transform(image)


@pytest.mark.parametrize("shape", [(3, 20, 31), (3, 33, 17), (3, 14, 14), (3, 13, 5)])
@pytest.mark.parametrize("crop", [0.5, 0.8, 0.875])
def test_preprocess_crop_equals_torchvisions_resize_and_centre_crop(shape, crop):
    image = random_image(*shape)
    result = Preprocess(11, (0.0,) * 3, (1.0,) * 3, 3, crop)(image)
    v2 = _torchvision().transforms.v2
    resized = v2.functional.resize(image / 255, round(11 / crop), antialias=True)
    top, left = (resized.shape[1] - 11) // 2, (resized.shape[2] - 11) // 2
    torch.testing.assert_close(result, resized[:, top : top + 11, left : left + 11])


def test_preprocess_crop_cuts_the_border_off():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[:, 2:6, 2:6] = 255
    assert torch.equal(Preprocess(4, **GREY, crop=0.5)(image), torch.full((1, 4, 4), 2.0))


@pytest.mark.parametrize("crop", [0, -0.5, 1.01, float("nan")])
def test_preprocess_refuses_other_crops(crop):
    with pytest.raises(InputError, match=r"crop is .*, expected a share in \(0, 1\]"):
        Preprocess(4, **GREY, crop=crop)


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_takes_a_part_of_the_original(channels):
    preprocess = Preprocess(9, (0.0,) * channels, (1.0,) * channels, channels)
    augment = Augment(preprocess, resized_crop=0.2)
    # The columns rise to the right, so the range of a result is the width of what was cut out.
    image = torch.arange(40, dtype=torch.uint8).expand(channels, 30, 40) * 6
    torch.manual_seed(0)
    results = [augment(image) for _ in range(50)]
    assert all((x.shape, x.dtype) == ((channels, 9, 9), torch.float32) for x in results)
    widths = torch.stack([x[0, 4, 8] - x[0, 4, 0] for x in results]) * 255 / 6
    assert widths.min() < 18 and 25 < widths.max() < 40
    assert min(x.min() for x in results) >= 0 and max(x.max() for x in results) <= 1


def test_resized_crop_refuses_what_resize_refuses():
    augment = Augment(Preprocess(4, **GREY), resized_crop=0.5)
    with pytest.raises(InputError, match="images has 3 channels, expected 1"):
        augment(random_image(3, 8, 8))
    with pytest.raises(InputError, match=r"images is torch\.float32"):
        augment(torch.zeros(1, 8, 8))


def test_random_erasing_fills_a_rectangle_with_noise():
    augment = Augment(Preprocess(16, **GREY), random_erasing=0.5)
    white = torch.full((1, 16, 16), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    changed = torch.cat([augment(white) for _ in range(200)]) != 2.0
    areas = changed.sum((1, 2)) / 256
    assert 70 < (areas > 0).sum() < 130
    assert areas.max() < 0.4
    rectangle = next(x for x in changed if x.sum() > 10)
    assert rectangle.sum() == rectangle.any(0).sum() * rectangle.any(1).sum()


@pytest.mark.parametrize("policy", [POLICY, "original", "original-mstd0.5"])
def test_timm_augment_is_a_function_of_the_seeds(policy):
    pytest.importorskip("timm")
    preprocess = Preprocess(12, **RGB)
    augment = Augment(preprocess, timm_augment=policy)
    image = random_image(3, 20, 17)
    results = [seeded(augment, image, seed) for seed in range(10)]
    assert any(not torch.equal(x, results[0]) for x in results)
    for seed, result in enumerate(results):
        assert (result.shape, result.dtype) == ((3, 12, 12), torch.float32)
        assert torch.equal(seeded(augment, image, seed), result)
        pixels = result + preprocess.mean
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6


def test_timm_augment_fills_with_the_mean():
    pytest.importorskip("timm")
    augment = Augment(Preprocess(16, **RGB), timm_augment="rand-m10-n9-p1")
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    # Colours may change after the fill, but not in all of the images.
    corners = torch.stack([seeded(augment, white, seed)[:, 0, 0] for seed in range(200)])
    assert (corners.abs() < 0.003).all(1).any()


def test_every_change_survives_pickling_together():
    pytest.importorskip("timm")
    changes = {**EVERY_CHANGE, "rand_augment_ops": 0, "resized_crop": 0.3, "random_erasing": 0.9}
    augment = Augment(Preprocess(8, **RGB, crop=0.9), timm_augment=POLICY, **changes)
    pickled = pickle.dumps(augment)
    assert b"timm." not in pickled
    image = random_image(3, 11, 8)
    assert torch.equal(seeded(augment, image), seeded(pickle.loads(pickled), image))


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "rand-",
        "rand-foo",
        "rand-m9.5",
        "rand-tmine",
        "rand-n99-tweights",
        "original-m9",
        "rand_m9",
    ],
)
def test_timm_augment_refuses_other_policies(policy):
    with pytest.raises(InputError, match=r"timm_augment='.*' is no policy of timm's RandAugment"):
        Augment(Preprocess(8, **RGB), timm_augment=policy)


def test_timm_augment_refuses_grey_images_and_a_second_policy():
    with pytest.raises(InputError, match=r"works on RGB, but the images have 1 channel: use"):
        Augment(Preprocess(8, **GREY), timm_augment=POLICY)
    with pytest.raises(InputError, match=r"rand_augment_ops=2 and timm_augment=.* exclude"):
        Augment(Preprocess(8, **RGB), timm_augment=POLICY, rand_augment_ops=2)


def test_timm_augment_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm'.*spikeformers\[timm\]"):
        Augment(Preprocess(8, **RGB), timm_augment=POLICY)


@pytest.mark.parametrize(
    "argument",
    [dict(resized_crop=0), dict(resized_crop=1.1), dict(random_erasing=-0.1)],
)
def test_crops_and_erasing_refuse_values_out_of_range(argument):
    with pytest.raises(InputError, match=f"{next(iter(argument))} is .* expected"):
        Augment(Preprocess(8, **GREY), **argument)


EVENTS = dict(mean=(0.0, 0.0), std=(1.0, 2.0), channels=2)


def random_frames(*shape):
    return torch.poisson(torch.full(shape, 0.7), torch.Generator().manual_seed(sum(shape)))


def test_counts_are_not_scaled():
    frames = random_frames(3, 2, 8, 8)
    assert torch.equal(Preprocess(8, **EVENTS)(frames), frames / torch.tensor([1, 2]).view(2, 1, 1))


def test_resized_counts_keep_their_mean():
    frames = random_frames(3, 2, 64, 64)
    resized = Preprocess(32, **EVENTS).resize(frames)
    assert resized.shape == (3, 2, 32, 32)
    torch.testing.assert_close(resized.mean((2, 3)), frames.mean((2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(3, 2, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4),
        torch.zeros(3, 3, 4, 4),
    ],
)
def test_preprocess_wants_frames_of_counts(frames):
    with pytest.raises(InputError, match=r"frames is .* expected float32 counts of events \[T, 2"):
        Preprocess(4, **EVENTS)(frames)


@pytest.mark.parametrize(
    "change",
    [
        dict(flip=True),
        dict(crop_padding=3),
        dict(rotate=20),
        dict(translate=0.2),
        dict(scale=0.3),
        dict(resized_crop=0.4),
        dict(rand_augment_ops=2, rand_augment_magnitude=30),
        dict(random_erasing=1.0),
    ],
    ids=lambda change: next(iter(change)),
)
def test_all_frames_of_a_recording_are_changed_alike(change):
    augment = Augment(Preprocess(16, (0.0,) * 2, (1.0,) * 2, 2), **change)
    frames = random_frames(1, 2, 16, 16).expand(4, 2, 16, 16)
    torch.manual_seed(0)
    results = [augment(frames) for _ in range(16)]
    for result in results:
        assert (result.shape, result.dtype) == ((4, 2, 16, 16), torch.float32)
        assert torch.equal(result, result[:1].expand_as(result))
        assert result.min() >= 0 and result.max() <= frames.max()
    assert any(not torch.equal(result, frames) for result in results)
    augment = pickle.loads(pickle.dumps(augment))
    torch.manual_seed(0)
    assert all(torch.equal(augment(frames), result) for result in results)


def test_events_cannot_take_colours_policies():
    with pytest.raises(InputError, match="works on RGB, but the images have 2 channels: use"):
        Augment(Preprocess(4, **EVENTS), timm_augment="rand-m9")


def test_pictures_are_what_a_person_sees():
    image = random_image(3, 8, 8)
    preprocess = Preprocess(8, (0.3,) * 3, (0.2,) * 3, 3)
    assert torch.equal(preprocess.picture(preprocess.resize(image)), image)
    shown = Preprocess(8, **EVENTS).picture(random_frames(5, 4, 2, 8, 8))
    assert (shown.shape, shown.dtype) == ((5, 3, 8, 8), torch.uint8)
