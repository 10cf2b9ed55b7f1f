"""What is known about a tensor without running anything: where it comes from, what it can hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from spikeformers.types import ANALOG, Alphabet

__all__ = ["Origin", "Value", "is_from"]


class Origin(Enum):
    """What a value is computed from."""

    CONSTANT = "weights"  # parameters, buffers and numbers alone: known before any image comes
    IMAGE = "image"  # an affine function of the image
    SIGNAL = "signal"  # everything else


@dataclass(frozen=True)
class Value:
    """What is known about a tensor without running anything.

    Attributes:
        origin: What it is computed from.
        alphabet: The values it can hold.
    """

    origin: Origin
    alphabet: Alphabet | None = ANALOG

    def __str__(self) -> str:
        """Write `weights`, `image`, `{0,1}` or `analog`."""
        if self.origin is not Origin.SIGNAL:
            return self.origin.value
        return "analog" if self.alphabet is None else str(self.alphabet)


def is_from(operand: Any, origin: Origin) -> bool:
    """Whether an operand is a tensor of that origin."""
    return isinstance(operand, Value) and operand.origin is origin
