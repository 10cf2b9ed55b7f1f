"""What a network is trained for: each task encodes, scores and measures."""

from spikeformers.tasks.classification import Accuracy, Classification

__all__ = ["Accuracy", "Classification"]
