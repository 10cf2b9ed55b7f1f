"""Tiny ImageNet's own folders."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spikeformers.data import load_dataset
from spikeformers.errors import DataError

WORDS = {"n03": "teapot", "n01": "goldfish, Carassius auratus", "n02": "teapot, kettle"}


def write_tiny_imagenet(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    (folder / "val/images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n03\nn01\nn02\n")
    (folder / "words.txt").write_text("".join(f"{k}\t{v}\n" for k, v in WORDS.items()))
    lines = []
    for shade, wnid in enumerate(("n01", "n02", "n03")):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8, 3), 50 * shade, np.uint8)).save(
                images / f"{wnid}_{i}.JPEG"
            )
        name = f"val_{3 - shade}.JPEG"
        Image.fromarray(np.full((8, 8), 50 * shade, np.uint8)).save(folder / "val/images" / name)
        lines.append(f"{name}\t{wnid}\t0\t0\t7\t7\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_both_splits(tmp_path: Path, inside: bool) -> None:
    folder = write_tiny_imagenet(tmp_path)
    root = folder if inside else tmp_path
    train, val = load_dataset("tiny_imagenet", root), load_dataset("tiny_imagenet", root, "test")
    assert train.classes == val.classes == ("goldfish", "teapot (n02)", "teapot (n03)")
    assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
    assert len(val) == 3
    for image, label in (val[i] for i in range(3)):
        assert image.shape == (3, 8, 8) and abs(int(image[0, 0, 0]) - 50 * label) <= 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val/images/val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"names .val_3\.JPEG., which .*images lacks"):
        load_dataset("tiny_imagenet", folder, "test")
    (folder / "val/val_annotations.txt").write_text("val_1.JPEG\tn99\t0\t0\t7\t7\n")
    with pytest.raises(DataError, match=r"the class 'n99', which wnids\.txt lacks"):
        load_dataset("tiny_imagenet", folder, "test")
    (folder / "wnids.txt").unlink()
    with pytest.raises(DataError, match=r"unzip tiny-imagenet-200\.zip in"):
        load_dataset("tiny_imagenet", folder)


@pytest.mark.data
def test_the_real_set(real_data: Path, tmp_path: Path) -> None:
    archive = real_data / "tiny-imagenet/tiny-imagenet-10classes.zip"
    zipfile.ZipFile(archive).extractall(tmp_path)
    train, val = (load_dataset("tiny_imagenet", tmp_path, s) for s in ("train", "test"))
    assert (len(train), len(val), len(train.classes)) == (2000, 300, 10)
    assert train[1999][0].shape == val[299][0].shape == (3, 64, 64)
