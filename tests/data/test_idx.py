import gzip

import numpy as np
import pytest
import torch

from spikeformers.data import load_dataset
from spikeformers.errors import DataError
from tests.data.writers import write_idx, write_idx_split


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "raw"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("torchvision_layout", [False, True])
def test_reads_both_layouts_plain_and_compressed(tmp_path, name, raw, suffix, torchvision_layout):
    folder = tmp_path / raw / "raw" if torchvision_layout else tmp_path
    images, labels = write_idx_split(folder, "train", 12, suffix)
    dataset = load_dataset(name, tmp_path, "train")
    assert len(dataset) == 12
    assert len(dataset.classes) == 10
    assert dataset.channels == 1
    image, label = dataset[11]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 5, 4)
    assert np.array_equal(image[0].numpy(), images[11])
    assert (type(label), label) == (int, labels[11])


def test_a_split_needs_its_own_files_only(tmp_path):
    write_idx_split(tmp_path, "t10k", 3)
    assert len(load_dataset("mnist", tmp_path, "test")) == 3
    with pytest.raises(DataError, match=r"found neither train-images-idx3-ubyte nor .*gz in"):
        load_dataset("mnist", tmp_path, "train")


def test_truncated_file(tmp_path):
    write_idx_split(tmp_path, "train", 4)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="train-images-idx3-ubyte is truncated: 95 bytes"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("size", [4, 6, 15])
def test_truncated_header(tmp_path, size):
    write_idx_split(tmp_path, "train", 4)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="truncated"):
        load_dataset("mnist", tmp_path)


def test_bytes_after_the_end(tmp_path):
    write_idx_split(tmp_path, "train", 4)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="longer than its header says"):
        load_dataset("mnist", tmp_path)


def test_truncated_gzip(tmp_path):
    write_idx_split(tmp_path, "train", 4, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"cannot read .*ubyte\.gz .* download it again"):
        load_dataset("mnist", tmp_path)


def test_not_gzip(tmp_path):
    write_idx_split(tmp_path, "train", 4, ".gz")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="truncated or damaged"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param(gzip.compress(b"x"), id="gzip"),  # its bytes hold the time: no id of their own
        pytest.param(bytes((0, 0, 8, 1)), id="short"),
    ],
)
def test_wrong_magic(tmp_path, content):
    write_idx_split(tmp_path, "train", 4)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="expected '00000803': it is not an IDX file"):
        load_dataset("mnist", tmp_path)


def test_image_and_label_counts_differ(tmp_path):
    write_idx_split(tmp_path, "train", 4)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3))
    with pytest.raises(DataError, match="has 4 images but 3 labels"):
        load_dataset("mnist", tmp_path)


def test_no_images(tmp_path):
    write_idx_split(tmp_path, "train", 0)
    with pytest.raises(DataError, match="has no images"):
        load_dataset("mnist", tmp_path)


def test_label_outside_the_classes(tmp_path):
    write_idx_split(tmp_path, "train", 4)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 10, 2]))
    with pytest.raises(DataError, match="labels from 0 to 10, expected 0 to 9"):
        load_dataset("mnist", tmp_path)
