"""The words that signatures are written in: shapes, state, alphabets, outputs.

The shape aliases are `jaxtyping` annotations. They are documentation and, in the tests, checked at
run time; without jaxtyping they are plain `Tensor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    Current: TypeAlias = Tensor
    Spikes: TypeAlias = Tensor
    Membrane: TypeAlias = Tensor
else:
    try:
        from jaxtyping import Float

        # T time steps first; a membrane is what one step of a current looks like.
        Current = Float[Tensor, "T *step"]
        Spikes = Float[Tensor, "T *step"]
        Membrane = Float[Tensor, "*step"]
    except ImportError:
        Current = Spikes = Membrane = Tensor

State: TypeAlias = dict[str, Tensor]
"""What the `Stateful` modules of a model carry between chunks of time: name -> tensor."""


@dataclass(frozen=True)
class Outputs:
    """What a model with further heads returns in training.

    Attributes:
        logits: Per-step class scores of the main head, `[T, B, K]`.
        aux: Per-step scores of the further heads by name, for example `{"kd": [T, B, K]}`; under
            "ponder" a scalar, what it cost to run the tokens.
    """

    logits: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Alphabet:
    """The values a tensor can hold: `scale * {low, ..., high}`.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        scale: Constant factor, foldable into the next weights; `None` is a learned one.
    """

    low: int
    high: int
    scale: float | None = 1.0

    def __str__(self) -> str:
        """Write `{0,1}`, `0.25*{0..4}` and the like."""
        values = f"{{{self.low},{self.high}}}"
        if self.high - self.low > 1:
            values = f"{{{self.low}..{self.high}}}"
        if self.scale == 1.0:
            return values
        return f"{'w' if self.scale is None else format(self.scale, 'g')}*{values}"


BINARY = Alphabet(0, 1)
"""Spikes."""

ANALOG: Alphabet | None = None
"""Everything else: real values."""
