"""Deterministic loading: all randomness is a pure function of (seed, epoch, sample index)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeformers.data.images import ImageDataset
from spikeformers.errors import InputError, SpikeformersError

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
) -> EpochBatches:
    """Return the batches of one epoch, the same for any number of workers.

    The order of the images is drawn from (seed, epoch), and each image is transformed with random
    generators seeded from (seed, epoch, index). The caller's generators are left untouched.

    Args:
        dataset: Images and labels.
        transform: From a uint8 image `[C, H, W]` to a float32 image `[C, S, S]`. It may draw from
            the global generators of torch, numpy and Python.
        batch_size: Number of images `B` in a batch; the last one may be smaller.
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, at least 0.
        shuffle: Draw the order, instead of keeping that of the data set.
        workers: Number of loading processes; 0 loads in the calling one.
        drop_last: Leave out a last, smaller batch.

    Returns:
        An iterable with a length, over images float32 `[B, C, S, S]` and labels int64 `[B]`.

    Raises:
        InputError: If a number is out of its range or no batch would be left.
    """
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
        ("workers", workers, 0),
    ):
        if value < low:
            raise InputError(f"{name} is {value}, expected at least {low}")
    if drop_last and batch_size > len(dataset):
        raise InputError(
            f"batch_size is {batch_size}, but the data set has {len(dataset)} images and drop_last "
            "leaves out smaller batches: choose a smaller batch_size"
        )
    return EpochBatches(
        dataset,
        transform,
        batch_size=batch_size,
        seeds=np.random.SeedSequence((seed, epoch)).generate_state(1 + len(dataset)),
        shuffle=shuffle,
        workers=workers,
        drop_last=drop_last,
    )


class EpochBatches(Dataset[Batch]):
    """The batches of one epoch: a sequence, which worker processes fill when it is iterated.

    Args:
        dataset: Images and labels.
        transform: From a uint8 image to a float32 image.
        batch_size: Number of images in a batch.
        seeds: `[1 + N]`; the first is for the order, the others are for the images.
        shuffle: Draw the order, instead of keeping that of the data set.
        workers: Number of loading processes.
        drop_last: Leave out a last, smaller batch.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        *,
        batch_size: int,
        seeds: np.ndarray,
        shuffle: bool,
        workers: int,
        drop_last: bool,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.workers = workers
        self.seeds = seeds[1:]
        count = len(dataset)
        generator = torch.Generator().manual_seed(int(seeds[0]))
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        self.chunks = torch.split(order, batch_size)
        if drop_last and count % batch_size:
            self.chunks = self.chunks[:-1]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Batch:
        images, labels = [], []
        with _generators_restored():
            for index in self.chunks[number].tolist():
                image, label = self.dataset[index]
                _seed_generators(int(self.seeds[index]))
                images.append(self.transform(image))
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)

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
        for batch in loader:
            if isinstance(batch, SpikeformersError):
                raise batch
            images, labels = batch
            yield images, labels


class _ErrorsAsValues(Dataset[Batch | SpikeformersError]):
    """Carries our errors out of a worker, which would wrap their one sentence in a traceback."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | SpikeformersError:
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
