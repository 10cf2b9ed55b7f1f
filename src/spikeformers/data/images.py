"""Data sets by name, as map-style datasets of `(image, label)` or `(frames, label)`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from spikeformers.data._cifar import CIFAR10, CIFAR100, Layout, read_cifar_split
from spikeformers.data._class_names import (
    CIFAR10_CLASSES,
    CIFAR100_CLASSES,
    DIGIT_CLASSES,
    FASHION_CLASSES,
)
from spikeformers.data._decode import decode_image
from spikeformers.data._event_files import Events, read_aedat31, read_n_mnist_bin
from spikeformers.data._events import (
    GESTURE_FOLDER,
    Recordings,
    integrate,
    list_cifar10_dvs,
    list_dvs128_gesture,
    list_n_mnist,
    read_cifar10_dvs_file,
)
from spikeformers.data._idx import read_idx_split
from spikeformers.data._shards import read_shards
from spikeformers.data._tiny_imagenet import ARCHIVE, FOLDER, read_tiny_imagenet_split
from spikeformers.data._torchvision import _torchvision
from spikeformers.errors import ConfigError, DataError, InputError, MissingExtraError


@runtime_checkable
class ImageDataset(Protocol):
    """What every reader returns: images by index, in a fixed order.

    Attributes:
        classes: Names of the classes; a label is an index into them.
        channels: 1 for grey, 3 for RGB, 2 for the darker and brighter events of an event camera.
    """

    classes: tuple[str, ...]
    channels: int

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image and its label.

        Images are uint8 `[C, H, W]`, counts of events float32 `[T, 2, H, W]`.
        """
        ...


class ArrayImages:
    """Images of one size, held in memory.

    Args:
        images: uint8 `[N, C, H, W]`.
        labels: Integers `[N]`.
        classes: Names of the classes.
        source: Where the images came from, for error messages.

    Raises:
        DataError: If there is no image, or labels and images or classes do not fit together.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: tuple[str, ...], source: str
    ) -> None:
        if len(images) != len(labels):
            raise DataError(
                f"{source} has {len(images)} images but {len(labels)} labels: take both files "
                "from the same distribution"
            )
        if len(images) == 0:
            raise DataError(f"{source} has no images: use a set with at least one per split")
        if int(labels.max()) >= len(classes) or int(labels.min()) < 0:
            raise DataError(
                f"{source} has labels from {int(labels.min())} to {int(labels.max())}, expected "
                f"0 to {len(classes) - 1} for its {len(classes)} classes: download it again"
            )
        self.images = images
        self.labels = labels.tolist()
        self.classes = classes
        self.channels = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class FileImages:
    """Images in files, decoded to RGB when they are asked for.

    Args:
        samples: Path and label of each image.
        classes: Names of the classes.
    """

    def __init__(self, samples: list[tuple[str, int]], classes: tuple[str, ...]) -> None:
        self.samples = samples
        self.classes = classes
        self.channels = 3

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return read_image(path, self.channels), label


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    timesteps: int | None = None,
) -> ImageDataset:
    """Open one split of a data set; only the files of that split need to be there.

    Args:
        name: A key of `DATASETS`.
        root: Folder with the files as distributed; not used by `digits`.
        split: `"train"` or `"test"`.
        timesteps: Frames that the recordings of an event camera become; images need none.

    Raises:
        ConfigError: If there is no data set or split of that name, or `timesteps` is missing.
        DataError: If the files are missing, damaged or empty.
        MissingExtraError: If the reader needs a package that is not installed.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"there is no data set {name!r}, did you mean {near!r}? Known: {', '.join(DATASETS)}"
        )
    if split not in ("train", "test"):
        raise ConfigError(f"there is no split {split!r}: choose 'train' or 'test'")
    found = DATASETS[name].load(_folder(name, root), split)
    return found.frames(_checked(timesteps, name)) if isinstance(found, Recordings) else found


def read_recording(name: str, path: str | Path, timesteps: int) -> Tensor:
    """Read one recording of an event camera.

    Args:
        name: The data set whose files are like this one.
        path: The file; all of it becomes frames.
        timesteps: Frames T.

    Returns:
        Counts of events, float32 `[T, 2, H, W]`.

    Raises:
        ConfigError: If the data set is none of events.
        DataError: If the file is missing, damaged, or of another format.
    """
    read = DATASETS[name].read_events
    if read is None:
        raise ConfigError(f"{name} is no data set of events: read its files with read_image")
    if not Path(path).is_file():
        raise DataError(f"there is no recording {path}: check the path")
    return integrate(read(Path(path)), _checked(timesteps, name))


def _checked(timesteps: int | None, name: str) -> int:
    if timesteps is None or timesteps < 1:
        raise ConfigError(
            f"timesteps is {timesteps}, but the data set {name!r} holds recordings of events: say "
            "how many frames each becomes, for example timesteps=16"
        )
    return timesteps


def read_image(path: str | Path, channels: int) -> Tensor:
    """Decode one image file.

    Args:
        path: A file in any format that Pillow reads.
        channels: 1 converts to grey, 3 to RGB.

    Returns:
        The image, uint8 `[C, H, W]`.

    Raises:
        DataError: If the file is missing or no readable image.
    """
    if channels not in (1, 3):
        raise InputError(f"channels is {channels!r}, expected 1 for grey or 3 for RGB")
    if not Path(path).is_file():
        raise DataError(f"there is no image file {path}: check the path")
    return decode_image(Path(path), channels, str(path))


def _folder(name: str, root: str | Path | None) -> Path:
    """Return the folder of a data set, which has something in it."""
    files = DATASETS[name].files
    if not files:
        return Path()
    if root is None:
        raise DataError(f"the data set {name!r} needs data.root=FOLDER with {files}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: set data.root=FOLDER with {files}")
    if not any(folder.iterdir()):
        raise DataError(f"the folder {folder} is empty: put {files} there")
    return folder


def _load_digits(_root: Path, split: str) -> ArrayImages:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train") from error
    digits = load_digits()
    part = slice(None, 1437) if split == "train" else slice(1437, None)
    images = torch.from_numpy(digits.images[part]).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target[part])
    return ArrayImages(images.unsqueeze(1), labels, DIGIT_CLASSES, "digits")


def _load_idx(root: Path, split: str, raw: str, classes: tuple[str, ...]) -> ArrayImages:
    return ArrayImages(*read_idx_split(root, split, raw), classes, f"the {split} split in {root}")


def _load_cifar(root: Path, split: str, layout: Layout, classes: tuple[str, ...]) -> ArrayImages:
    images, labels, names = read_cifar_split(root, split, layout)
    return ArrayImages(images, labels, names or classes, f"the {split} split in {root}")


def _load_folder(root: Path, split: str) -> FileImages:
    names = ("train",) if split == "train" else ("test", "val")
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        wanted = " or ".join(str(root / name) for name in names)
        raise DataError(f"there is no folder {wanted}: put the images in it, one folder per class")
    try:
        found = _torchvision().datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} lacks images ({error}): put one folder per class there, each with at least "
            "one image"
        ) from error
    # A test split may lack a class, and still each label must mean what it means in training.
    train = root / "train"
    classes = tuple(sorted(path.name for path in train.glob("*") if path.is_dir()))
    classes = classes or tuple(found.classes)
    unknown = sorted(set(found.classes) - set(classes))
    if unknown:
        raise DataError(
            f"{folder} has classes that {train} lacks ({', '.join(unknown)}): give both splits the "
            "same class folders"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    samples = [(path, label_of[found.classes[label]]) for path, label in found.samples]
    return FileImages(samples, classes)


def _load_tiny_imagenet(root: Path, split: str) -> FileImages:
    return FileImages(*read_tiny_imagenet_split(root, split))


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        files: What `root` has to contain, in words; empty if nothing is read from there.
        load: Reads one split from `root`.
        test_images: Size of the whole test split, where everybody's is the same.
        read_events: Reads one recording of a set of events; `None` for images.
    """

    files: str
    load: Callable[[Path, str], ImageDataset | Recordings]
    test_images: int | None = None
    read_events: Callable[[Path], Events] | None = None


_IDX_FILES = (
    "the files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, plain or .gz, as distributed"
)
_TORONTO = "as distributed at www.cs.toronto.edu/~kriz/cifar.html"

DATASETS: dict[str, Source] = {
    "cifar10": Source(
        f"the file {CIFAR10.archive} {_TORONTO}, or the folder {CIFAR10.folder} from it",
        partial(_load_cifar, layout=CIFAR10, classes=CIFAR10_CLASSES),
        test_images=10_000,
    ),
    "cifar100": Source(
        f"the file {CIFAR100.archive} {_TORONTO}, or the folder {CIFAR100.folder} from it",
        partial(_load_cifar, layout=CIFAR100, classes=CIFAR100_CLASSES),
        test_images=10_000,
    ),
    "cifar10_dvs": Source(
        "the folders airplane, automobile, ... and truck from the ten zip files of CIFAR10-DVS, as "
        "distributed at figshare.com",
        list_cifar10_dvs,
        test_images=1_000,
        read_events=read_cifar10_dvs_file,
    ),
    "digits": Source("", _load_digits, test_images=360),
    "dvs128_gesture": Source(
        f"the folder {GESTURE_FOLDER} from {GESTURE_FOLDER}.tar.gz, as distributed at "
        "research.ibm.com/interactive/dvsgesture",
        list_dvs128_gesture,
        test_images=288,
        read_events=read_aedat31,
    ),
    "fashion_mnist": Source(
        f"{_IDX_FILES} at github.com/zalandoresearch/fashion-mnist",
        partial(_load_idx, raw="FashionMNIST/raw", classes=FASHION_CLASSES),
        test_images=10_000,
    ),
    "image_folder": Source("the images as <split>/<class>/<name>.jpg", _load_folder),
    "mnist": Source(
        f"{_IDX_FILES} at yann.lecun.com/exdb/mnist",
        partial(_load_idx, raw="MNIST/raw", classes=DIGIT_CLASSES),
        test_images=10_000,
    ),
    "n_mnist": Source(
        "the folders Train and Test from Train.zip and Test.zip of N-MNIST, as distributed at "
        "www.garrickorchard.com",
        list_n_mnist,
        test_images=10_000,
        read_events=read_n_mnist_bin,
    ),
    "tiny_imagenet": Source(
        f"the folder {FOLDER} from {ARCHIVE}, as distributed at cs231n.stanford.edu",
        _load_tiny_imagenet,
        test_images=10_000,
    ),
    "webdataset": Source("the shards train*.tar and val*.tar, of .jpg and .cls files", read_shards),
}
"""The data sets that `load_dataset` knows, by name."""
