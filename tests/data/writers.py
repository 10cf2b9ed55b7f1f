"""Writers of tiny data sets in the formats of the real ones."""

import gzip
import pickle
import struct

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


def random_events(count, side, seed=0):
    """Return columns, rows, polarities and rising times in microseconds."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, side, (2, count))
    return x, y, rng.integers(0, 2, count), 1000 + 10 * np.arange(count)


def write_aedat2(path, x, y, on, usec, version=b"2.0"):
    """A DVS128 counts columns from the right and rows from the bottom, and says 0 for brighter."""
    address = (127 - x) << 1 | (127 - y) << 8 | (1 - on)
    header = b"#!AER-DAT" + version + b"\r\n# This is a raw AE data file - do not edit\r\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + np.stack([address, usec], 1).astype(">u4").tobytes())


def aedat31_packet(words, usec, kind=1, overflow=0, spare=0):
    """One packet: `spare` counts places of events that are reserved behind the last one."""
    count = len(words)
    header = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, count + spare, count, count)
    return header + np.stack([words, usec], 1).astype("<u4").tobytes() + bytes(8 * spare)


def write_aedat31(path, x, y, on, usec, packet=50):
    """Write packets of at most so many events, and one of another kind among them."""
    words = x << 17 | y << 2 | on << 1 | 1
    content = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    for start in range(0, len(x), packet):
        part = slice(start, start + packet)
        content += aedat31_packet(words[part], usec[part])
        content += aedat31_packet(np.arange(3), np.arange(3), kind=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_n_mnist_bin(path, x, y, on, usec):
    columns = [x, y, on << 7 | usec >> 16 & 127, usec >> 8 & 255, usec & 255]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.stack(columns, 1).astype(np.uint8).tobytes())


def write_gesture_set(root, train=("user01_led",), test=("user02_led",), classes=11):
    """Write trials of all gestures in turn: 100 events and a millisecond each, with pauses."""
    root.mkdir(parents=True, exist_ok=True)
    for split, names in (("train", train), ("test", test)):
        (root / f"trials_to_{split}.txt").write_text("".join(f"{n}.aedat\n" for n in names))
        for seed, name in enumerate(names):
            write_aedat31(root / f"{name}.aedat", *random_events(200 * classes, 128, seed))
            rows = [f"{i + 1},{1000 + 2000 * i},{2000 + 2000 * i}\n" for i in range(classes)]
            head = "class,startTime_usec,endTime_usec\n"
            (root / f"{name}_labels.csv").write_text("".join([head, *rows]))
