"""What a network is trained for: each task encodes, scores and measures."""

from spikeformers.tasks.classification import Accuracy, Classification
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
    "Objective",
    "SurrogateAgreement",
]
