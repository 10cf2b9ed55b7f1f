"""Data sets of event cameras, as map-style datasets of `(frames [T, 2, H, W], label)`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeformers.data._class_names import CIFAR10_CLASSES, DIGIT_CLASSES, GESTURE_CLASSES
from spikeformers.data._event_files import Events, read_aedat2, read_aedat31, read_n_mnist_bin
from spikeformers.errors import DataError

GESTURE_FOLDER = "DvsGesture"

_FOLDER_OF_SPLIT = {"train": "Train", "test": "Test"}


@dataclass(frozen=True)
class Recordings:
    """One split of an event data set, before it is decided how many frames a recording becomes.

    Attributes:
        samples: What reads a recording, and its label.
        classes: Names of the classes.
    """

    samples: Sequence[tuple[Callable[[], Events], int]]
    classes: tuple[str, ...]

    def frames(self, timesteps: int) -> EventFrames:
        """Return the data set of recordings as `timesteps` frames each."""
        return EventFrames(self, timesteps)


class EventFrames:
    """Recordings that are read and integrated into frames when they are asked for.

    Args:
        recordings: The recordings.
        timesteps: Frames T of each.
    """

    def __init__(self, recordings: Recordings, timesteps: int) -> None:
        self.samples = recordings.samples
        self.classes = recordings.classes
        self.channels = 2
        self.timesteps = timesteps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        read, label = self.samples[index]
        return integrate(read(), self.timesteps), label


def integrate(events: Events, timesteps: int) -> Tensor:
    """Count the events of each pixel and polarity, in T frames of equally many events.

    Of `N` events a frame takes `N // T` and the last one also the rest: the field's habit, and
    called split by number. Of fewer events than frames each gets a frame of its own.

    Args:
        events: A recording, or a part of one.
        timesteps: Frames T.

    Shape:
        float32 `[T, 2, H, W]`: first the events that became darker, then those that became
        brighter.
    """
    frame = np.arange(len(events)) // max(len(events) // timesteps, 1)
    shape = (timesteps, 2, events.side, events.side)
    cells = (np.minimum(frame, timesteps - 1), events.on, events.y, events.x)
    counts = np.bincount(np.ravel_multi_index(cells, shape), minlength=np.prod(shape))
    return torch.from_numpy(counts.astype(np.float32).reshape(shape))


def picture(frames: Tensor) -> Tensor:
    """Show frames as a person may look at them: brighter in red, darker in blue, summed over time.

    Shape:
        Counts `[..., T, 2, H, W]` -> uint8 `[..., 3, H, W]`.
    """
    counts = frames.sum(-4)
    # Most pixels have few events; the root lifts them out of the dark.
    shares = (counts / counts.amax((-3, -2, -1), keepdim=True).clamp(min=1e-6)).clamp(min=0).sqrt()
    darker, brighter = shares.unbind(-3)
    colours = torch.stack((brighter, torch.minimum(darker, brighter), darker), -3)
    return (255 * colours).round().to(torch.uint8)


def read_cifar10_dvs_file(path: Path) -> Events:
    """Read a recording of CIFAR10-DVS, whose camera lay on its side: rows and columns change."""
    events = read_aedat2(path)
    return replace(events, x=events.y, y=events.x)


def list_cifar10_dvs(root: Path, split: str) -> Recordings:
    """List one split of CIFAR10-DVS: `<class>/cifar10_<class>_<number>.aedat`.

    There is no official split. As usual, the first 90 % of each class, in the alphabetical order of
    the file names (0, 1, 10, 100, ...), are for training.
    """
    samples: list[tuple[Callable[[], Events], int]] = []
    for label, name in enumerate(CIFAR10_CLASSES):
        if not (root / name).is_dir() and (root / f"{name}.zip").is_file():
            raise DataError(
                f"found no folder {name} in {root}: unzip the ten files like {name}.zip"
            )
        paths = _files(root / name, "aedat")
        held_out = len(paths) // 10
        chosen = paths[:-held_out] if held_out else paths
        if split == "test":
            chosen = paths[len(chosen) :]
        samples += [(partial(read_cifar10_dvs_file, path), label) for path in chosen]
    if not samples:
        raise DataError(
            f"found no test recordings in {root}: a class needs ten of them, of which one is for "
            "testing"
        )
    return Recordings(samples, CIFAR10_CLASSES)


def list_n_mnist(root: Path, split: str) -> Recordings:
    """List one split of N-MNIST: `Train/<digit>/<number>.bin` and `Test/...`."""
    folder = root / _FOLDER_OF_SPLIT[split]
    if not folder.is_dir():
        zipped = folder.with_suffix(".zip")
        fix = (
            f"unzip {zipped.name} there" if zipped.is_file() else f"put the files of {zipped} there"
        )
        raise DataError(f"found no folder {folder}: {fix}")
    return Recordings(
        [
            (partial(read_n_mnist_bin, path), label)
            for label, digit in enumerate(DIGIT_CLASSES)
            for path in _files(folder / digit, "bin")
        ],
        DIGIT_CLASSES,
    )


def list_dvs128_gesture(root: Path, split: str) -> Recordings:
    """List one split of DVS128 Gesture: the trials in `trials_to_<split>.txt`, cut into gestures.

    Beside each trial `<name>.aedat` there is `<name>_labels.csv` with class, start and end of each
    gesture.
    """
    folder = root / GESTURE_FOLDER if (root / GESTURE_FOLDER).is_dir() else root
    trials = folder / f"trials_to_{split}.txt"
    if not trials.is_file():
        raise DataError(
            f"found no {trials.name} in {root} or {root / GESTURE_FOLDER}: unpack "
            f"{GESTURE_FOLDER}.tar.gz there"
        )
    classes = _gesture_classes(folder / "gesture_mapping.csv")
    samples: list[tuple[Callable[[], Events], int]] = []
    for name in trials.read_text().split():
        path = folder / name
        if not path.is_file():
            raise DataError(f"there is no recording {path}, which {trials} names: unpack it again")
        for label, start, end in _gestures(path.with_name(f"{path.stem}_labels.csv"), len(classes)):
            samples.append((partial(read_aedat31, path, start, end), label))
    if not samples:
        raise DataError(f"{trials} names no recordings: unpack {GESTURE_FOLDER}.tar.gz again")
    return Recordings(samples, classes)


def _gestures(path: Path, classes: int) -> list[tuple[int, int, int]]:
    """Return label, start and end in microseconds of each gesture."""
    gestures = []
    for row in _rows(path, ("class", "startTime_usec", "endTime_usec")):
        try:
            number, start, end = (int(value) for value in row)
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}): unpack it again") from error
        if not 1 <= number <= classes or not start < end:
            raise DataError(
                f"{path} has the line {','.join(row)}, expected a class from 1 to {classes}, a "
                "start and a later end: unpack it again"
            )
        # The file counts classes from 1.
        gestures.append((number - 1, start, end))
    return gestures


def _gesture_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return GESTURE_CLASSES
    names = {number: name for name, number in _rows(path, ("action", "label"))}
    numbers = [str(i + 1) for i in range(len(names))]
    if not names or set(names) != set(numbers):
        raise DataError(f"{path} does not number its actions from 1: unpack it again, or remove it")
    return tuple(names[number] for number in numbers)


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the rows of a table that has these columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [tuple(cell.strip() for cell in row) for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}): unpack it again") from error
    if not rows or rows[0] != columns or any(len(row) != len(columns) for row in rows):
        raise DataError(f"{path} is no table of {', '.join(columns)}: unpack it again")
    return rows[1:]


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder in the order of their names."""
    paths = sorted(folder.glob(f"*.{suffix}"), key=lambda path: path.name)
    if not paths:
        raise DataError(
            f"found no .{suffix} files in {folder}: put the recordings of the class there"
        )
    return paths
