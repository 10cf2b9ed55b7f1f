"""Reader of Tiny ImageNet's folders: 200 classes of 64 x 64 images, named by WordNet ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from spikeformers.errors import DataError

FOLDER = "tiny-imagenet-200"
ARCHIVE = f"{FOLDER}.zip"

Samples = list[tuple[str, int]]


def read_tiny_imagenet_split(root: Path, split: str) -> tuple[Samples, tuple[str, ...]]:
    """List one split; "test" is the validation part, as the labels of the test part are secret.

    Labels follow the sorted WordNet ids, not the order of `wnids.txt`: so they are the same as
    those of a plain folder-per-class reader.

    Args:
        root: The folder `tiny-imagenet-200`, or the one that contains it.
        split: `"train"` or `"test"`.

    Returns:
        Path and label of each image, and the names of the classes.
    """
    folder = next((at for at in (root, root / FOLDER) if (at / "wnids.txt").is_file()), None)
    if folder is None:
        raise DataError(
            f"found no wnids.txt in {root} or {root / FOLDER}: unzip {ARCHIVE} in {root}, it is "
            "not read from the archive"
        )
    wnids = sorted(_lines(folder / "wnids.txt"))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    read = _train_samples if split == "train" else _val_samples
    return read(folder, labels), _class_names(folder / "words.txt", wnids)


def _train_samples(folder: Path, labels: dict[str, int]) -> Samples:
    samples: Samples = []
    for wnid, label in labels.items():
        images = folder / "train" / wnid / "images"
        paths = sorted(images.glob("*.JPEG"))
        if not paths:
            raise DataError(f"{images} has no *.JPEG: unzip {ARCHIVE} again")
        samples.extend((str(path), label) for path in paths)
    return samples


def _val_samples(folder: Path, labels: dict[str, int]) -> Samples:
    """Follow `val_annotations.txt`: a line is the file's name, its class and a box, with tabs."""
    annotations, images = folder / "val/val_annotations.txt", folder / "val/images"
    there = {path.name for path in images.glob("*.JPEG")}
    samples: Samples = []
    for number, line in enumerate(_lines(annotations), start=1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in labels:
            raise DataError(
                f"line {number} of {annotations} gives {name!r} the class {wnid!r}, which "
                f"wnids.txt lacks: unzip {ARCHIVE} again"
            )
        if name not in there:
            raise DataError(f"{annotations} names {name!r}, which {images} lacks: unzip it again")
        samples.append((str(images / name), labels[wnid]))
    return samples


def _class_names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    """Take the first synonym of each class; where two classes share it, the id tells them apart."""
    lines = _lines(words) if words.is_file() else []
    synonyms = dict(line.split("\t", 1) for line in lines if "\t" in line)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() or wnid for wnid in wnids]
    count = Counter(names)
    pairs = zip(names, wnids, strict=True)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in pairs)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}): unzip {ARCHIVE} again") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: unzip {ARCHIVE} again")
    return lines
