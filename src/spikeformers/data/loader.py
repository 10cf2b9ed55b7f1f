"""Deterministic loading: all randomness is a pure function of (seed, epoch, sample index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeformers.data.images import ImageDataset
from spikeformers.errors import DataError, InputError, SpikeformersError

Batch: TypeAlias = tuple[Tensor, Tensor]
Transform: TypeAlias = Callable[[Tensor], Tensor]


def epoch_batches(
    dataset: ImageDataset,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    workers: int = 0,
    drop_last: bool = False,
    first: int = 0,
    rank: int = 0,
    ranks: int = 1,
    unreadable: str = "fail",
) -> EpochBatches:
    """Return the batches of one epoch, the same for any number of workers.

    The order of the images is drawn from (seed, epoch), and each image is transformed with random
    generators seeded from (seed, epoch, index). The caller's generators are left untouched.

    Args:
        dataset: Images and labels.
        transform: From an item of the data set, a uint8 image `[C, H, W]` or frames `[T, C, H, W]`,
            to float32 `[..., C, S, S]`. It may draw from the global generators of torch, numpy and
            Python.
        batch_size: Number of images in a batch of all ranks; the last one may be smaller.
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, at least 0.
        shuffle: Draw the order, instead of keeping that of the data set.
        workers: Number of loading processes; 0 loads in the calling one.
        drop_last: Leave out a last, smaller batch.
        first: Number of the first batch to deliver, for going on in the middle of an epoch.
        rank: Which part of every batch to deliver: all ranks together see what one would.
        ranks: Number of parts; one that is empty is left out.
        unreadable: What a `DataError` of an image does: "fail", "skip" it, or "replace" it by the
            next readable one of the data set. See `EpochBatches.skipped`.

    Returns:
        An iterable with a length, over images float32 `[B, C, S, S]`, or frames
        `[B, T, C, S, S]`, and labels int64 `[B]`.

    Raises:
        InputError: If a number is out of its range or no batch would be left.
    """
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
        ("workers", workers, 0),
        ("first", first, 0),
        ("ranks", ranks, 1),
    ):
        if value < low:
            raise InputError(f"{name} is {value}, expected at least {low}")
    if drop_last and batch_size > len(dataset):
        raise InputError(
            f"batch_size is {batch_size}, but the data set has {len(dataset)} images and drop_last "
            "leaves out smaller batches: choose a smaller batch_size"
        )
    if not 0 <= rank < ranks:
        raise InputError(f"rank is {rank}, expected 0 to {ranks - 1} for {ranks} ranks")
    if drop_last and batch_size % ranks:
        raise InputError(
            f"batch_size is {batch_size}, expected a multiple of the {ranks} ranks, so that each "
            "gets as many images"
        )
    if unreadable not in ("fail", "skip", "replace"):
        raise InputError(f"unreadable is {unreadable!r}, expected 'fail', 'skip' or 'replace'")
    seeds = np.random.SeedSequence((seed, epoch)).generate_state(1 + len(dataset))
    generator = torch.Generator().manual_seed(int(seeds[0]))
    count = len(dataset)
    order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
    batches = torch.split(order, batch_size)
    if drop_last and count % batch_size:
        batches = batches[:-1]
    parts = [torch.tensor_split(batch, ranks)[rank] for batch in batches[first:]]
    return EpochBatches(
        dataset,
        transform,
        [part.tolist() for part in parts if len(part)],
        seeds=seeds[1:],
        workers=workers,
        unreadable=unreadable,
    )


class EpochBatches(Dataset["Loaded"]):
    """The batches of one epoch: a sequence, which worker processes fill when it is iterated.

    Args:
        dataset: Images and labels.
        transform: From a uint8 image to a float32 image.
        batches: Indices of the images of each batch.
        seeds: One for each image of the data set, `[N]`.
        workers: Number of loading processes.
        unreadable: "fail", "skip" or "replace".

    Attributes:
        skipped: What was wrong with the images that could not be read so far, once for each.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        batches: list[list[int]],
        *,
        seeds: np.ndarray,
        workers: int,
        unreadable: str,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.batches = batches
        self.seeds = seeds
        self.workers = workers
        self.unreadable = unreadable
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Loaded:
        images, labels = [], []
        complaints: list[str] = []
        with _generators_restored():
            for index in self.batches[number]:
                sample = self._read(index, complaints)
                if sample is not None:
                    _seed_generators(int(self.seeds[index]))
                    images.append(self.transform(sample[0]))
                    labels.append(sample[1])
        batch = (torch.stack(images), torch.tensor(labels)) if images else None
        return Loaded(batch, complaints)

    def _read(self, index: int, complaints: list[str]) -> tuple[Tensor, int] | None:
        """Return an image and its label, or what stands in for it."""
        count = len(self.dataset)
        candidates = count if self.unreadable == "replace" else 1
        for candidate in range(index, index + candidates):
            try:
                return self.dataset[candidate % count]
            except DataError as error:
                if self.unreadable == "fail":
                    raise
                complaints.append(str(error))
        if self.unreadable == "replace":
            raise DataError(f"not one of the {count} images can be read: {complaints[0]}")
        return None

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            _ErrorsAsValues(self),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            # Without one of its own, the loader draws its base seed from the global generator.
            generator=torch.Generator(),
        )
        empty = bool(self.batches)
        for loaded in loader:
            if isinstance(loaded, SpikeformersError):
                raise loaded
            batch, complaints = loaded
            self.skipped += [said for said in dict.fromkeys(complaints) if said not in self.skipped]
            if batch is not None:
                empty = False
                # Pinning the memory makes lists of tuples.
                images, labels = batch
                yield images, labels
        if empty:
            count = sum(map(len, self.batches))
            raise DataError(f"not one of the {count} images can be read: {self.skipped[0]}")


class Loaded(NamedTuple):
    """A batch, unless none of its images could be read, and what was wrong with those."""

    batch: Batch | None
    complaints: list[str]


class _ErrorsAsValues(Dataset[Loaded | SpikeformersError]):
    """Carries our errors out of a worker, which would wrap their one sentence in a traceback."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Loaded | SpikeformersError:
        try:
            return self.batches[number]
        except SpikeformersError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _seed_generators(seed: int) -> None:
    # Not torch.manual_seed: before CUDA has started, each call adds to a queue of CUDA seeds.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def _generators_restored() -> Iterator[None]:
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
