import random

import numpy as np
import pytest
import torch

from spikeformers.data import Augment, Preprocess, epoch_batches, load_dataset
from spikeformers.errors import DataError, InputError


class Ramp:
    """Ten images; image `i` has the value `i` everywhere."""

    classes = ("even", "odd")
    channels = 1

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.full((1, 4, 4), index, dtype=torch.uint8), index % 2


def value(image):
    return image.float()


def noisy(image):
    noise = torch.rand(1).item() + np.random.rand() + random.random()
    return image.float() + noise / 3


def load(transform=noisy, **changes):
    arguments = dict(batch_size=4, seed=1, epoch=0, shuffle=True)
    return list(epoch_batches(Ramp(), transform, **{**arguments, **changes}))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def by_sample(batches):
    """Map the index of each sample to its noise."""
    values = torch.cat([images[:, 0, 0, 0] for images, _ in batches]).tolist()
    return {int(v): v - int(v) for v in values}


def test_batches():
    batches = epoch_batches(Ramp(), value, batch_size=4, seed=0, epoch=0, shuffle=False)
    assert len(batches) == 3
    images, labels = zip(*batches, strict=True)
    assert [len(x) for x in images] == [4, 4, 2]
    assert torch.cat(images)[:, 0, 0, 0].tolist() == list(range(10))
    assert torch.cat(labels).tolist() == [0, 1] * 5
    assert images[0].shape == (4, 1, 4, 4)
    assert (images[0].dtype, labels[0].dtype) == (torch.float32, torch.int64)


def test_drop_last():
    batches = epoch_batches(
        Ramp(), value, batch_size=4, seed=0, epoch=0, shuffle=True, drop_last=True
    )
    assert len(batches) == 2
    assert [len(labels) for _, labels in batches] == [4, 4]


def test_shuffling_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [
        tuple(
            torch.cat([images for images, _ in load(value, seed=s, epoch=e)])[:, 0, 0, 0].tolist()
        )
        for s, e in [(0, 0), (0, 1), (1, 0), (1, 1), (2**70, 0)]
    ]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 5


def test_an_epoch_repeats():
    assert same(load(), load())
    batches = epoch_batches(Ramp(), noisy, batch_size=4, seed=1, epoch=0, shuffle=True)
    assert same(list(batches), list(batches))
    assert not same(load(), load(epoch=1))
    assert not same(load(), load(seed=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    assert same(load(), load(workers=workers))


def test_workers_change_nothing_with_augmentation():
    augment = Augment(
        Preprocess(8, (0.5,), (0.5,), 1),
        flip=True,
        crop_padding=2,
        rotate=10,
        translate=0.1,
        scale=0.1,
        rand_augment_ops=2,
    )
    assert same(load(augment), load(augment, workers=2))


def test_a_sample_is_the_same_in_any_order_and_batch():
    reference = by_sample(load(shuffle=False, batch_size=10))
    assert by_sample(load(shuffle=True, batch_size=3)) == reference
    assert len(set(reference.values())) == 10


def test_the_callers_generators_are_untouched():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    def seed():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    seed()
    expected = [draw() for _ in range(4)]
    seed()
    drawn = [
        draw() for _ in epoch_batches(Ramp(), noisy, batch_size=4, seed=1, epoch=0, shuffle=True)
    ]
    drawn.append(draw())
    assert drawn == expected
    seed()
    load(workers=1)
    assert draw() == expected[0]


def test_the_callers_generators_are_restored_after_an_error():
    def fail(_image):
        torch.rand(1)
        raise RuntimeError("broken transform")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken transform"):
        load(fail)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_generators_do_not_matter():
    torch.manual_seed(1)
    first = load()
    torch.manual_seed(2)
    assert same(first, load())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_sentence(image_folder, workers):
    (image_folder / "train/cat/2.png").write_bytes(b"not an image")
    dataset = load_dataset("image_folder", image_folder)
    preprocess = Preprocess(4, (0.5,) * 3, (0.5,) * 3, 3)
    batches = epoch_batches(
        dataset, preprocess, batch_size=2, seed=0, epoch=0, shuffle=False, workers=workers
    )
    with pytest.raises(DataError, match=r"^cannot read the image \S*cat/2\.png .* the file$"):
        list(batches)


def test_image_folder_with_workers(image_folder):
    dataset = load_dataset("image_folder", image_folder)
    preprocess = Preprocess(4, (0.0,) * 3, (1.0,) * 3, 3)
    batches = epoch_batches(
        dataset, preprocess, batch_size=3, seed=0, epoch=0, shuffle=False, workers=1
    )
    images, labels = next(iter(batches))
    assert images.shape == (3, 3, 4, 4)
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (dict(batch_size=0), "batch_size is 0, expected at least 1"),
        (dict(seed=-1), "seed is -1, expected at least 0"),
        (dict(epoch=-1), "epoch is -1"),
        (dict(workers=-1), "workers is -1"),
        (dict(batch_size=11, drop_last=True), "batch_size is 11, but the data set has 10 images"),
    ],
)
def test_wrong_arguments(argument, message):
    with pytest.raises(InputError, match=message):
        load(**argument)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_together_see_what_one_process_sees(batch_size, ranks):
    whole = load(batch_size=batch_size)
    parts = [load(batch_size=batch_size, rank=r, ranks=ranks) for r in range(ranks)]
    for number, (images, labels) in enumerate(whole):
        there = [part[number] for part in parts if number < len(part)]
        assert torch.equal(torch.cat([x for x, _ in there]), images)
        assert torch.equal(torch.cat([y for _, y in there]), labels)


def test_an_empty_part_is_left_out():
    assert [len(load(batch_size=3, rank=r, ranks=2)) for r in (0, 1)] == [4, 3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_going_on_in_the_middle_of_an_epoch(first, workers):
    options = dict(batch_size=4, seed=1, epoch=0, shuffle=True, workers=workers, first=first)
    rest = epoch_batches(Ramp(), noisy, **options)
    assert len(rest) == 3 - first
    assert same(list(rest), load()[first:])


def test_going_on_as_one_of_several_ranks():
    arguments = dict(drop_last=True, rank=1, ranks=2)
    assert same(load(first=1, **arguments), load(**arguments)[1:])


class Damaged(Ramp):
    """A ramp in which some images cannot be read."""

    def __init__(self, *damaged):
        self.damaged = damaged

    def __getitem__(self, index):
        if index in self.damaged:
            raise DataError(f"cannot read the image {index}.png")
        return super().__getitem__(index)


def open_damaged(*damaged, transform=value, **changes):
    arguments = dict(batch_size=2, seed=1, epoch=0, shuffle=False)
    return epoch_batches(Damaged(*damaged), transform, **{**arguments, **changes})


def values(batches):
    return [images[:, 0, 0, 0].int().tolist() for images, _ in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped(workers):
    batches = open_damaged(1, 4, 5, unreadable="skip", workers=workers)
    assert values(batches) == [[0], [2, 3], [6, 7], [8, 9]]
    assert batches.skipped == [f"cannot read the image {i}.png" for i in (1, 4, 5)]
    assert values(batches) == [[0], [2, 3], [6, 7], [8, 9]]
    assert len(batches.skipped) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next_one(workers):
    batches = open_damaged(1, 4, 5, 9, unreadable="replace", workers=workers)
    assert values(batches) == [[0, 2], [2, 3], [6, 6], [6, 7], [8, 0]]
    assert batches.skipped == [f"cannot read the image {i}.png" for i in (1, 4, 5, 9)]
    assert next(iter(batches))[1].tolist() == [0, 0]


def test_a_replacement_is_transformed_with_the_seed_of_its_place():
    whole = torch.cat([images for images, _ in open_damaged(transform=noisy)])
    replaced = open_damaged(3, transform=noisy, unreadable="replace")
    replaced = torch.cat([images for images, _ in replaced])
    torch.testing.assert_close(replaced[3], whole[3] + 1)
    assert torch.equal(replaced[4:], whole[4:])


def test_skipping_leaves_the_other_images_as_they_are():
    skipped = open_damaged(3, transform=noisy, shuffle=True, unreadable="skip")
    noise = by_sample(open_damaged(transform=noisy, shuffle=True))
    del noise[3]
    assert by_sample(skipped) == noise


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("unreadable", ["skip", "replace"])
def test_nothing_is_readable(unreadable, workers):
    batches = open_damaged(*range(10), unreadable=unreadable, workers=workers)
    with pytest.raises(DataError, match=r"^not one of the 10 images can be read: .* 0\.png$"):
        list(batches)


def test_other_errors_do_not_count_as_unreadable():
    def refuse(_image):
        raise InputError("no such image")

    with pytest.raises(InputError, match="no such image"):
        list(open_damaged(transform=refuse, unreadable="skip"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (dict(first=-1), "first is -1, expected at least 0"),
        (dict(ranks=0), "ranks is 0, expected at least 1"),
        (dict(rank=2, ranks=2), "rank is 2, expected 0 to 1 for 2 ranks"),
        (dict(rank=-1), "rank is -1, expected 0 to 0"),
        (dict(ranks=3, drop_last=True), "batch_size is 4, expected a multiple of the 3 ranks"),
        (dict(unreadable="ignore"), "unreadable is 'ignore', expected 'fail', 'skip' or 'replace'"),
    ],
)
def test_wrong_arguments_of_shared_and_damaged_data(argument, message):
    with pytest.raises(InputError, match=message):
        load(**argument)
