import subprocess
import sys

import pytest
import torch
from PIL import Image

from spikeformers.data import DATASETS, load_dataset, read_image
from spikeformers.errors import ConfigError, DataError, InputError, MissingExtraError
from tests.data.writers import write_image

NEED_ROOT = sorted(set(DATASETS) - {"digits"})


def test_digits():
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    image, label = train[0]
    assert (image.shape, image.dtype, label) == ((1, 8, 8), torch.uint8, 0)
    assert max(int(train[i][0].max()) for i in range(100)) == 255
    assert train.classes == tuple("0123456789")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*spikeformers\[train\]"):
        load_dataset("digits")


def test_unknown_name():
    with pytest.raises(ConfigError, match="no data set 'cifar-10', did you mean 'cifar10'"):
        load_dataset("cifar-10")


def test_unknown_split(tmp_path):
    with pytest.raises(ConfigError, match="no split 'val': choose 'train' or 'test'"):
        load_dataset("mnist", tmp_path, "val")


@pytest.mark.parametrize("name", NEED_ROOT)
def test_root_not_given(name):
    with pytest.raises(DataError, match=f"{name}' needs data.root=FOLDER with the"):
        load_dataset(name)


@pytest.mark.parametrize("name", NEED_ROOT)
def test_root_missing(tmp_path, name):
    with pytest.raises(DataError, match=r"no folder .*nowhere: set data.root=FOLDER with the"):
        load_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", NEED_ROOT)
def test_root_empty(tmp_path, name):
    with pytest.raises(DataError, match="is empty: put the"):
        load_dataset(name, str(tmp_path))


@pytest.mark.parametrize("name", NEED_ROOT)
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_files_found(tmp_path, name, split):
    (tmp_path / "notes.txt").write_text("nothing of interest")
    with pytest.raises(DataError, match=r"found n|there is no folder .*(train|test or .*val)"):
        load_dataset(name, tmp_path, split)


def test_image_folder(image_folder):
    train = load_dataset("image_folder", image_folder)
    assert train.classes == ("cat", "dog")
    assert train.channels == 3
    assert [label for _, label in train] == [0, 0, 1]
    image, _ = train[0]
    assert (image.shape, image.dtype) == ((3, 4, 6), torch.uint8)
    assert image[:, 0, 0].tolist() == [255, 0, 0]


def test_image_folder_labels_mean_the_same_in_both_splits(image_folder):
    test = load_dataset("image_folder", image_folder, "test")
    assert test.classes == ("cat", "dog")
    assert test[0][1] == 1


def test_image_folder_with_a_test_split_only(tmp_path):
    write_image(tmp_path / "val/ape/1.png", "red")
    write_image(tmp_path / "val/bee/1.png", "red")
    assert load_dataset("image_folder", tmp_path, "test").classes == ("ape", "bee")


def test_image_folder_with_an_unknown_class(image_folder):
    write_image(image_folder / "test/eel/1.png", "red")
    with pytest.raises(DataError, match=r"classes that .*train lacks \(eel\)"):
        load_dataset("image_folder", image_folder, "test")


def test_image_folder_with_an_empty_class(image_folder):
    (image_folder / "train/eel").mkdir()
    with pytest.raises(DataError, match="train lacks images"):
        load_dataset("image_folder", image_folder)


def test_image_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train lacks images"):
        load_dataset("image_folder", tmp_path)


def test_image_folder_names_an_unreadable_image(image_folder):
    (image_folder / "train/cat/2.png").write_bytes(b"not an image")
    train = load_dataset("image_folder", image_folder)
    with pytest.raises(DataError, match=r"cannot read the image .*cat/2\.png"):
        train[1]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_read_image_converts(tmp_path, mode, channels):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (4, 2), "white").convert(mode).save(path)
    image = read_image(path, channels)
    assert image.is_contiguous()
    assert torch.equal(image, torch.full((channels, 2, 4), 255, dtype=torch.uint8))


def test_read_image_errors(tmp_path):
    with pytest.raises(DataError, match=r"no image file .*missing\.png"):
        read_image(tmp_path / "missing.png", 3)
    with pytest.raises(InputError, match="channels is 2, expected 1 for grey or 3 for RGB"):
        read_image(tmp_path / "missing.png", 2)


def test_read_image_truncated(tmp_path):
    path = tmp_path / "image.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cannot read the image .*image\.png"):
        read_image(path, 3)


def test_read_image_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "image.png").touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="pillow"):
        read_image(tmp_path / "image.png", 3)


def test_importing_the_room_imports_no_extra():
    code = (
        "import sys, spikeformers.data; "
        "assert not {'torchvision', 'sklearn', 'PIL', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "first", "mean"),
    [
        ("mnist", "mnist", [5, 0, 4, 1, 9], 0.1307),
        ("fashion_mnist", "fashion-mnist", [9, 0, 0, 3, 0], 0.2860),
        ("cifar10", "cifar10", [6, 9, 9, 4, 1], 0.4734),
    ],
)
def test_real_files(real_data, name, folder, first, mean):
    """The known first labels, and the known mean of the pixels as far as a part has it."""
    root = real_data / folder
    train, test = load_dataset(name, root), load_dataset(name, root, "test")
    assert [train[i][1] for i in range(5)] == first
    pixels = torch.stack([train[i][0] for i in range(2000)]).float() / 255
    assert pixels.mean().item() == pytest.approx(mean, abs=0.01)
    assert train[0][0].shape == test[0][0].shape
