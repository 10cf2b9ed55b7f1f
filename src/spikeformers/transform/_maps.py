"""How accelerated layers see a map: as rows, as a ghost, and as what it can be computed from.

Maps are `[T, B, C, *S]` with the channels last in memory; the kernels see them as rows `[T, R, C]`.
Spikes travel as bits, which cannot carry a gradient; a *ghost* travels with them, a tensor of their
shape and dtype without memory of its own, whose only use is to be differentiated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def rows_of(x: Tensor) -> Tensor:
    """`[T, B, C, *S]` -> `[T, R, C]`, a view where the channels are last in memory."""
    return x.movedim(2, -1).reshape(x.shape[0], -1, x.shape[2])


def map_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """`[T, R, C]` -> a view of this shape, `[T, B, C, *S]`."""
    return rows.view(*shape[:2], *shape[3:], shape[2]).movedim(-1, 2)


def is_static(x: Any) -> bool:
    """Whether all steps of an input are the same memory, as those of a repeated image are."""
    return isinstance(x, Tensor) and len(x) > 1 and x.stride(0) == 0 and not x.requires_grad


def at_every_step(x: Tensor, steps: int) -> Tensor:
    """`[1, B, C, *S]` -> `[T, B, C, *S]`."""
    rows = rows_of(x).expand(steps, -1, -1).contiguous()
    return map_of(rows, torch.Size((steps, *x.shape[1:])))


def ghost_of(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of this shape that takes no memory."""
    return like.new_empty(()).expand(shape)


class Recipe(NamedTuple):
    """How to compute a map again, so that the backward pass need not keep it.

    Attributes:
        rebuild: Takes the tensors and returns the map `[T, B, C, *S]`.
        tensors: What is kept instead.
    """

    rebuild: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, x: Tensor) -> "Recipe":
        """Keep the map itself."""
        return cls(_as_it_is, (x,))


def _as_it_is(x: Tensor) -> Tensor:
    return x
