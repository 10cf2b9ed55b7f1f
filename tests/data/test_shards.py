"""Tar shards, as WebDataset writes them, with random access."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformers.data import epoch_batches, load_dataset
from spikeformers.errors import DataError


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), shade, np.uint8)).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def sample(name: str, label: int) -> list[tuple[str, bytes]]:
    label_text = str(label).encode()
    return [(f"{name}.png", png(label)), (f"{name}.cls", label_text), (f"{name}.json", b"")]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "train-000000.tar", sample("a/0001", 3) + sample("a/0002", 1))
    write_shard(tmp_path / "train-000001.tar", sample("b/0001", 0))
    write_shard(tmp_path / "val-000000.tar", sample("c", 2))
    return tmp_path


def test_shards_are_one_set_with_random_access(shards: Path) -> None:
    train, val = load_dataset("webdataset", shards), load_dataset("webdataset", shards, "test")
    assert (len(train), len(val)) == (3, 1)
    for i, label in ((2, 0), (0, 3), (1, 1)):
        image, found = train[i]
        assert found == label and image.shape == (3, 6, 5) and bool((image == label).all())
    # The largest label of the training shards counts for both splits.
    assert train.classes == val.classes == ("0", "1", "2", "3")


def test_names_of_classes(shards: Path) -> None:
    (shards / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    assert load_dataset("webdataset", shards, "test").classes == ("ant", "bee", "cat", "dog")
    (shards / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="labels from 0 to 3, expected 0 to 1 for the 2 classes"):
        load_dataset("webdataset", shards)


def test_workers_read_them_too(shards: Path) -> None:
    train = pickle.loads(pickle.dumps(load_dataset("webdataset", shards)))
    options = dict(batch_size=2, seed=0, epoch=1, shuffle=True)
    alone, two = (
        list(epoch_batches(train, torch.Tensor.float, workers=workers, **options))
        for workers in (0, 2)
    )
    assert sum(len(labels) for _, labels in alone) == 3
    for (images, labels), (same_images, same_labels) in zip(alone, two, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sample("x", 0)[:1], r"x in .*train-9.tar has 1 images and 0 .cls files"),
        (sample("x", 0)[1:2], "has 0 images and 1 .cls files"),
        ([("x.png", png(0)), ("x.cls", b"cat")], "x in .*.cls holds b'cat', expected a class"),
        ([("x.txt", b"words")], "has no samples"),
    ],
)
def test_what_is_no_sample_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_shard(tmp_path / "train-9.tar", members)
    with pytest.raises(DataError, match=message):
        load_dataset("webdataset", tmp_path)


def test_damaged_and_compressed_shards(shards: Path) -> None:
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    for cut in (700, 1536, len(whole) - tarfile.RECORDSIZE + 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot read the shard .*000001.tar"):
            load_dataset("webdataset", shards)
    path.write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match="is a compressed tar file"):
        load_dataset("webdataset", shards)
    for shard in shards.glob("train*"):
        shard.rename(shard.with_suffix(".tar.gz"))
    with pytest.raises(DataError, match="is a compressed tar file"):
        load_dataset("webdataset", shards)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    members = [("good.png", png(1)), ("good.cls", b"1"), ("bad.png", b"x" * 50), ("bad.cls", b"0")]
    write_shard(tmp_path / "train-0.tar", members)
    train = load_dataset("webdataset", tmp_path)
    assert train[0][1] == 1
    with pytest.raises(DataError, match=r"cannot read the image bad.png in .*train-0.tar"):
        train[1]
