"""Images in: readers, transforms, a deterministic loader and the encoding into time."""

from spikeformers.data.encode import direct
from spikeformers.data.images import DATASETS, ImageDataset, load_dataset, read_image
from spikeformers.data.loader import epoch_batches
from spikeformers.data.mix import Mix
from spikeformers.data.transforms import Augment, Preprocess

__all__ = [
    "DATASETS",
    "Augment",
    "ImageDataset",
    "Mix",
    "Preprocess",
    "direct",
    "epoch_batches",
    "load_dataset",
    "read_image",
]
