"""A training set and a recipe small enough to run whole experiments in seconds."""

from pathlib import Path

import numpy as np

from tests.data.writers import write_idx

SMALL = [
    "model.name=meta_spikeformer_xs32",
    "model.overrides={dims: [8, 8, 16], depths: [1, 1, 1], heads: 2}",
    "data.image_size=16",
    "augment.rotate=0",
    "augment.translate=0",
    "augment.scale=0",
    "train.epochs=2",
    "train.batch_size=8",
    "train.timesteps=2",
]


def write_small_set(folder: Path) -> Path:
    """Write 20 training and 10 test images as IDX files; the class is a bright row."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 120, (count, 12, 12), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label] = 255
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder
