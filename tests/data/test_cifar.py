import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from spikeformers.data import load_dataset
from spikeformers.errors import DataError
from tests.data.writers import write_cifar_file

FOLDER = "cifar-10-batches-py"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fortran", [False, True])
def test_reads_every_pickle_protocol(tmp_path, protocol, fortran):
    path = tmp_path / FOLDER / "test_batch"
    images, labels = write_cifar_file(path, 7, protocol=protocol, fortran=fortran)
    dataset = load_dataset("cifar10", tmp_path, "test")
    image, label = dataset[6]
    assert len(dataset) == 7
    assert dataset.channels == 3
    assert dataset.classes[:2] == ("airplane", "automobile")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.numpy(), images[6])
    assert (type(label), label) == (int, labels[6])


def test_reads_what_python_2_wrote(tmp_path):
    """The opcodes of the official files: strings for keys and pixels, numpy's old module names."""
    pixels = bytes(range(256)) * 12
    pickled = (
        b"\x80\x02}(U\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T\x00\x0c\x00\x00" + pixels + b"tbU\x06labels](K\x03eu."
    )
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "test_batch").write_bytes(pickled)
    image, label = load_dataset("cifar10", tmp_path, "test")[0]
    assert bytes(image.flatten().tolist()) == pixels
    assert label == 3


def test_a_reduced_set_may_lack_batches(tmp_path):
    first, _ = write_cifar_file(tmp_path / FOLDER / "data_batch_1", 3)
    third, _ = write_cifar_file(tmp_path / FOLDER / "data_batch_3", 2)
    dataset = load_dataset("cifar10", tmp_path, "train")
    assert len(dataset) == 5
    assert np.array_equal(dataset[2][0].numpy(), first[2])
    assert np.array_equal(dataset[4][0].numpy(), third[1])


def test_reads_the_archive(tmp_path):
    images, _ = write_cifar_file(tmp_path / "made" / FOLDER / "test_batch", 3)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / FOLDER, FOLDER)
    dataset = load_dataset("cifar10", tmp_path, "test")
    assert np.array_equal(dataset[2][0].numpy(), images[2])
    with pytest.raises(DataError, match=r"found no data_batch_1 or .* in .*cifar-10-batches-py or"):
        load_dataset("cifar10", tmp_path, "train")


def test_truncated_archive(tmp_path):
    write_cifar_file(tmp_path / "made" / FOLDER / "test_batch", 3)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / FOLDER, FOLDER)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cannot read .*cifar-10-python\.tar\.gz"):
        load_dataset("cifar10", tmp_path, "test")


def test_cifar100_and_its_class_names(tmp_path):
    folder = tmp_path / "cifar-100-python"
    write_cifar_file(folder / "test", 4, labels_key=b"fine_labels")
    classes = load_dataset("cifar100", tmp_path, "test").classes
    assert (len(set(classes)), list(classes)) == (100, sorted(classes))
    names = [f"class {i}".encode() for i in range(10)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))
    assert load_dataset("cifar100", tmp_path, "test").classes[3] == "class 3"


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol, name):
    write_cifar_file(tmp_path / FOLDER / "test_batch", 2)
    attack = pickle.dumps({b"data": Attack(tmp_path / "attacked")}, protocol=protocol)
    (tmp_path / FOLDER / name).write_bytes(attack)
    with pytest.raises(DataError, match=f"{name} .* refers to (posix|nt).mkdir, .* was refused"):
        load_dataset("cifar10", tmp_path, "test")
    assert not (tmp_path / "attacked").exists()


def test_a_dotted_name_does_not_reach_further(tmp_path):
    (tmp_path / FOLDER).mkdir()
    attack = b"\x80\x04\x8c\x05numpy\x8c\x16ndarray.__init__.__doc\x93."
    (tmp_path / FOLDER / "test_batch").write_bytes(attack)
    with pytest.raises(DataError, match=r"refers to numpy.ndarray.__init__"):
        load_dataset("cifar10", tmp_path, "test")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02", b"\x80\x02]."])
def test_not_a_cifar_file(tmp_path, content):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="cannot read test_batch"):
        load_dataset("cifar10", tmp_path, "test")


def test_truncated_pickle(tmp_path):
    path = tmp_path / FOLDER / "test_batch"
    write_cifar_file(path, 2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated"):
        load_dataset("cifar10", tmp_path, "test")


DATA = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"labels": [0, 1]}, "holds no uint8 data"),
        ({b"data": DATA[:, :-1].copy(), b"labels": [0, 1]}, "holds no uint8 data"),
        ({b"data": DATA.astype(np.float32), b"labels": [0, 1]}, "holds no uint8 data"),
        ({b"data": DATA}, "holds no list of labels"),
        ({b"data": DATA, b"labels": ["a", "b"]}, "holds no list of labels"),
        ({b"data": DATA, b"labels": [0]}, "has 2 images but 1 labels"),
        ({b"data": DATA[:0], b"labels": []}, "has no images"),
        ({b"data": DATA, b"labels": [0, 11]}, "expected 0 to 9"),
        ({b"data": DATA, b"labels": [-1, 1]}, "expected 0 to 9"),
    ],
)
def test_wrong_contents(tmp_path, content, message):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", tmp_path, "test")


def test_meta_without_names(tmp_path):
    write_cifar_file(tmp_path / FOLDER / "test_batch", 2)
    (tmp_path / FOLDER / "batches.meta").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match=r"batches.meta .* holds no list of class names"):
        load_dataset("cifar10", tmp_path, "test")
