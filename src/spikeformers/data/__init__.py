"""Images and events in: readers, transforms, a deterministic loader, the encoding into time."""

from spikeformers.data.encode import direct, over_time
from spikeformers.data.images import (
    DATASETS,
    ImageDataset,
    load_dataset,
    read_image,
    read_recording,
)
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
    "over_time",
    "read_image",
    "read_recording",
]
