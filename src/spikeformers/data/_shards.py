"""Reader of tar shards in the WebDataset convention, as a set with random access.

An index of all members is built when the set is opened, from the headers and labels alone. So the
images have numbers, as in any other set: order, shuffling and resumption need nothing special.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from torch import Tensor

from spikeformers.data._decode import decode_image
from spikeformers.errors import DataError

_IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")

# As in WebDataset: a sample's name ends at the first dot of the basename.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_HEADER = tarfile.BLOCKSIZE
# How gzip, bzip2, xz and zstd begin.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

Place: TypeAlias = tuple[int, int, int]
"""Where an image starts in its shard, its size in bytes, and its label."""

Member: TypeAlias = tuple[str, str, tarfile.TarInfo]
"""The sample that a file of a shard belongs to, the file's type, and its header."""


class ShardImages:
    """Images inside tar files, decoded to RGB when they are asked for.

    Args:
        paths: The shards.
        places: The images of each shard.
        classes: Names of the classes.

    Raises:
        DataError: If a label has no class.
    """

    def __init__(
        self, paths: list[Path], places: list[list[Place]], classes: tuple[str, ...]
    ) -> None:
        self.paths = paths
        self.classes = classes
        self.channels = 3
        # Arrays, as a list of so many tuples would be copied, page by page, into every worker.
        self.shards = np.repeat(np.arange(len(paths)), [len(images) for images in places])
        columns = np.array([place for images in places for place in images], dtype=np.int64)
        self.offsets, self.sizes, self.labels = columns.T.copy()
        low, high = self.labels.min(), self.labels.max()
        if high >= len(classes):
            raise DataError(
                f"the shards in {paths[0].parent} ({paths[0].name}, ...) have labels from {low} to "
                f"{high}, expected 0 to {len(classes) - 1} for the {len(classes)} classes: name "
                "every class in classes.txt, or mend the .cls files"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[self.shards[index]]
        size = int(self.sizes[index])
        # Opened anew for each image: that takes microseconds, there may be more shards than a
        # process may hold open, and forked workers would share one position in an open file.
        try:
            with path.open("rb") as file:
                # The header in front of the content names it, for error messages.
                file.seek(int(self.offsets[index]) - _HEADER)
                header, content = file.read(_HEADER), file.read(size)
        except OSError as error:
            raise DataError(f"cannot read the shard {path} ({error}): put it back") from error
        name = header[:100].partition(b"\0")[0].decode("utf-8", "replace")
        image = decode_image(io.BytesIO(content), self.channels, f"{name} in {path}")
        return image, int(self.labels[index])


def read_shards(root: Path, split: str) -> ShardImages:
    """Index the shards of one split.

    Without `classes.txt`, one name per line, the classes are the numbers up to the largest label of
    the training shards, or of the split itself where those are missing.

    Args:
        root: Folder of the shards `<split>*.tar`.
        split: `"train"` or `"test"`, which may be called "val" too.
    """
    paths = _find(root, "train") if split == "train" else _find(root, "test") or _find(root, "val")
    if not paths:
        wanted = "train*.tar" if split == "train" else "test*.tar or val*.tar"
        raise DataError(f"found no {wanted} in {root}: set data.root to the folder of the shards")
    places = [_index(path) for path in paths]
    names = root / "classes.txt"
    if names.is_file():
        lines = names.read_text("utf-8", errors="replace").strip().split("\n")
        return ShardImages(paths, places, tuple(line.strip() for line in lines))
    training = places if split == "train" else [_index(path) for path in _find(root, "train")]
    labels = [label for images in training or places for _, _, label in images]
    return ShardImages(paths, places, tuple(str(label) for label in range(max(labels) + 1)))


def _find(root: Path, prefix: str) -> list[Path]:
    paths = sorted(root.glob(f"{prefix}*.tar"))
    packed = sorted([*root.glob(f"{prefix}*.tar.*"), *root.glob(f"{prefix}*.tgz")])
    if packed and not paths:
        raise DataError(_compressed(packed[0]))
    return paths


def _compressed(path: Path) -> str:
    return (
        f"{path} is a compressed tar file, in which no image can be reached directly: unpack the "
        "compression, for example with gunzip, and keep the .tar"
    )


def _index(path: Path) -> list[Place]:
    """Walk the headers of one shard."""
    try:
        with path.open("rb") as file:
            if file.read(6).startswith(_COMPRESSED):
                raise DataError(_compressed(path))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                samples = groupby(_members(tar), key=lambda member: member[0])
                places = [_place(file, f"{name} in {path}", [*found]) for name, found in samples]
                # tarfile stops without a word at a damaged header, or where the file is cut there.
                file.seek(tar.offset)
                if file.read(_HEADER) != bytes(_HEADER):
                    raise tarfile.ReadError("the mark at the end is missing")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(
            f"cannot read the shard {path} ({error}): it is truncated or damaged, write or "
            "download it again"
        ) from error
    if not places:
        raise DataError(f"the shard {path} has no samples: remove it")
    return places


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """Yield the images and labels, and pass over whatever else a sample may have."""
    for info in tar:
        parts = _MEMBER.fullmatch(info.name)
        if parts and info.isfile() and parts[2].lower() in {"cls", *_IMAGE_TYPES}:
            yield parts[1], parts[2].lower(), info


def _place(file: BinaryIO, sample: str, members: list[Member]) -> Place:
    images = [info for _, kind, info in members if kind != "cls"]
    labels = [info for _, kind, info in members if kind == "cls"]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"the sample {sample} has {len(images)} images and {len(labels)} .cls files, expected "
            f"one of each, side by side (images are {', '.join(_IMAGE_TYPES)}): write it again"
        )
    file.seek(labels[0].offset_data)
    text = file.read(labels[0].size).strip()
    if not text.isdigit() or len(text) > 6:
        raise DataError(
            f"the sample {sample}: its .cls holds {text[:20]!r}, expected a class as a number: "
            "write the shard again"
        )
    return images[0].offset_data, images[0].size, int(text)
