"""Reader of the IDX files in which MNIST and Fashion-MNIST are distributed."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeformers.errors import DataError

_PREFIX = {"train": "train", "test": "t10k"}


def read_idx_split(root: Path, split: str, raw: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of one split.

    Args:
        root: Folder that holds the files, plain or `.gz`.
        split: `"train"` or `"test"`.
        raw: Folder below `root` that is searched too: torchvision's layout.

    Returns:
        Images `[N, 1, H, W]` and labels `[N]`, both uint8.
    """
    prefix = _PREFIX[split]
    images = _read_idx(_find(root, raw, f"{prefix}-images-idx3-ubyte"), ndim=3)
    labels = _read_idx(_find(root, raw, f"{prefix}-labels-idx1-ubyte"), ndim=1)
    return images.unsqueeze(1), labels


def _find(root: Path, raw: str, name: str) -> Path:
    for folder in (root, root / raw):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(
        f"found neither {name} nor {name}.gz in {root} or {root / raw}: set data.root to the "
        "folder with the files as distributed"
    )


def _read_idx(path: Path, ndim: int) -> Tensor:
    """Read one file: the bytes 0 0 8 `ndim`, then `ndim` big-endian sizes, then the bytes."""
    content = _read_bytes(path)
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise DataError(
            f"{path} starts with the bytes {content[:4].hex()!r}, expected {magic.hex()!r}: it is "
            f"not an IDX file of {ndim}-d uint8 data, download it again"
        )
    start = 4 + 4 * ndim
    # A header that is cut short yields a wrong size, and so fails the same test as missing data.
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(
            f"{path} is {problem}: {len(content)} bytes for the shape {shape}, expected "
            f"{expected}: download it again"
        )
    # The copy makes the array writable, as torch wants it.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {path} ({error}): it is truncated or damaged, download it again"
        ) from error
