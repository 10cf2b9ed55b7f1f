"""Writers of tiny data sets in the formats of the real ones."""

import gzip
import pickle

import numpy as np
from PIL import Image


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim))
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + sizes + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_split(folder, prefix, count, suffix=""):
    images = np.random.default_rng(count).integers(0, 256, (count, 5, 4))
    labels = np.arange(count) % 10
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


def write_cifar_file(path, count, labels_key=b"labels", protocol=2, fortran=False):
    data = np.random.default_rng(count).integers(0, 256, (count, 3072)).astype(np.uint8)
    labels = [i % 10 for i in range(count)]
    stored = np.asfortranarray(data) if fortran else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": stored, labels_key: labels}, protocol=protocol))
    return data.reshape(-1, 3, 32, 32), labels


def write_image(path, color, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
