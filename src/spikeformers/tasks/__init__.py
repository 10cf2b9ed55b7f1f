"""What a network is trained for: each task encodes, scores and measures."""

from spikeformers.tasks.classification import Accuracy, Classification
from spikeformers.tasks.masked import MaskedAutoencoding, ReconstructionError
from spikeformers.tasks.objectives import (
    TET,
    CrossEntropy,
    Distillation,
    Objective,
    SurrogateAgreement,
)

__all__ = [
    "TET",
    "Accuracy",
    "Classification",
    "CrossEntropy",
    "Distillation",
    "MaskedAutoencoding",
    "Objective",
    "ReconstructionError",
    "SurrogateAgreement",
    "Task",
]

Task = Classification | MaskedAutoencoding
"""What the training loop can train for."""
