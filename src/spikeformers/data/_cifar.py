"""Reader of CIFAR's Python version: pickles, read without running what they may contain."""

from __future__ import annotations

import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spikeformers.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Where a CIFAR set keeps what.

    Attributes:
        archive: The file as distributed.
        folder: The folder inside the archive, or beside it when unpacked.
        files: File names of each split; a reduced set may lack some of them.
        labels: Key of the labels in these files.
        meta: Name of the file with the class names; may be absent.
        names: Key of the class names in that file.
    """

    archive: str
    folder: str
    files: dict[str, tuple[str, ...]]
    labels: str
    meta: str
    names: str


CIFAR10 = Layout(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    meta="batches.meta",
    names="label_names",
)
CIFAR100 = Layout(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
)


def read_cifar_split(
    root: Path, split: str, layout: Layout
) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Read one split from the folder, or else from the archive.

    Returns:
        Images uint8 `[N, 3, 32, 32]`, labels int64 `[N]`, and the class names if the set has them.
    """
    names = layout.files[split]
    contents = _read_files(root, layout, (*names, layout.meta))
    batches = {name: contents[name] for name in names if name in contents}
    if not batches:
        raise DataError(
            f"found no {' or '.join(names)} in {root / layout.folder} or "
            f"{root / layout.archive}: set data.root to the folder with {layout.archive} as "
            "distributed"
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    for name, content in batches.items():
        source = f"{name} of {root / layout.folder}"
        batch = _unpickle(content, source)
        images.append(_images(batch.get("data"), source))
        labels.extend(_labels(batch.get(layout.labels), len(images[-1]), source))
    classes = None
    if layout.meta in contents:
        source = f"{layout.meta} of {root / layout.folder}"
        classes = _class_names(_unpickle(contents[layout.meta], source).get(layout.names), source)
    return torch.from_numpy(np.concatenate(images)), torch.tensor(labels), classes


def _read_files(root: Path, layout: Layout, names: Collection[str]) -> dict[str, bytes]:
    folder = root / layout.folder
    contents = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    archive = root / layout.archive
    if contents.keys() - {layout.meta} or not archive.is_file():
        return contents
    try:
        with tarfile.open(archive) as tar:
            # Nothing is unpacked to disk, so a hostile path in the archive has no effect.
            for member in tar:
                path = PurePosixPath(member.name)
                if path.parent.name == layout.folder and path.name in names and member.isfile():
                    file = tar.extractfile(member)
                    contents[path.name] = file.read() if file else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"cannot read {archive} ({error}): it is truncated or damaged, download it again"
        ) from error
    return contents


class _StoredArray:
    """Stands in for a pickled `numpy.ndarray`: takes its shape and bytes, calls no numpy."""

    def __init__(self, *_: object) -> None:
        self.shape: tuple[int, ...] = ()
        self.is_fortran = False
        self.content = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, _dtype, self.is_fortran, self.content = state


class _StoredDtype:
    """Stands in for a pickled `numpy.dtype`: CIFAR's pixels are bytes, there is nothing to keep."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stored_from_buffer(
    content: bytes, dtype: object, shape: tuple[int, ...], order: str
) -> _StoredArray:
    array = _StoredArray()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode_latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows the few names that a CIFAR file refers to, and maps each to something harmless.

    A pickle is a program: whoever may name any importable function may run any code. Here a file
    that names anything else is refused, with the name in the message.
    """

    allowed: ClassVar[dict[str, Any]] = {
        "_codecs.encode": _encode_latin1,
        "__builtin__.bytes": bytes,
        "builtins.bytes": bytes,
        "numpy.dtype": _StoredDtype,
        "numpy.ndarray": _StoredArray,
        # numpy 2 renamed its private modules; official files carry the older name.
        "numpy.core.multiarray._reconstruct": _StoredArray,
        "numpy._core.multiarray._reconstruct": _StoredArray,
        "numpy.core.numeric._frombuffer": _stored_from_buffer,
        "numpy._core.numeric._frombuffer": _stored_from_buffer,
    }

    def __init__(self, content: bytes, source: str) -> None:
        # Official files were written by Python 2: their strings arrive as bytes.
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        """Look up a global of the pickle in the table above."""
        if f"{module}.{name}" not in self.allowed:
            raise DataError(
                f"{self.source} refers to {module}.{name}, which no CIFAR file needs and which "
                "could run code: it was refused, download the file from its official source"
            )
        return self.allowed[f"{module}.{name}"]


def _unpickle(content: bytes, source: str) -> dict[str, Any]:
    try:
        stored = _Unpickler(content, source).load()
        return {_text(key): value for key, value in stored.items()}
    except DataError:
        raise
    # A damaged pickle can fail in any way: each of its bytes is an instruction.
    except Exception as error:
        raise DataError(
            f"cannot read {source} ({type(error).__name__}: {error}): it is truncated or not a "
            "CIFAR file, download it again"
        ) from error


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _images(stored: object, source: str) -> np.ndarray:
    """Rows of 3072 bytes, one colour plane after the other -> `[N, 3, 32, 32]`."""
    if not (
        isinstance(stored, _StoredArray)
        and len(stored.shape) == 2
        and stored.shape[1] == 3 * 32 * 32
        and len(stored.content) == math.prod(stored.shape)
    ):
        raise DataError(f"{source} holds no uint8 data [N, 3072]: download it again")
    rows = np.frombuffer(stored.content, np.uint8)
    rows = rows.reshape(stored.shape, order="F" if stored.is_fortran else "C")
    return rows.reshape(-1, 3, 32, 32)


def _labels(stored: object, count: int, source: str) -> list[int]:
    if not isinstance(stored, list) or not all(isinstance(label, int) for label in stored):
        raise DataError(f"{source} holds no list of labels: download it again")
    if len(stored) != count:
        raise DataError(f"{source} has {count} images but {len(stored)} labels: download it again")
    return stored


def _class_names(stored: object, source: str) -> tuple[str, ...]:
    if not isinstance(stored, list) or not stored:
        raise DataError(f"{source} holds no list of class names: download it again, or remove it")
    return tuple(_text(name) for name in stored)
