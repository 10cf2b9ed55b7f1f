"""Maps that are not computed yet: what accelerated layers hand to each other.

A synapse hands on its current before the norm, a trunk adds to it, and the neuron that receives it
does norm, sum and firing in one pass; what it hands on is spikes as bits, which the next synapse
reads. Whatever else touches one of these maps gets an ordinary tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spikeformers.transform._fire import Add, Affine, Fire, Firing
from spikeformers.transform._maps import Recipe
from spikeformers.transform._weigh import Kernel, SpikeConv, Unpack, convolve_spikes


class LazyMap:
    """Something that becomes a map `[T, B, C, *S]` when somebody looks at it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __init__(self, like: Tensor) -> None:
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        self.ndim = like.ndim
        self._value: Tensor | None = None

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def value(self) -> Tensor:
        """Return the map, computed once."""
        if self._value is None:
            self._value = self._compute()
        return self._value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.value(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        args, kwargs = torch.utils._pytree.tree_map(dense, (args, kwargs or {}))
        return function(*args, **kwargs)

    def __len__(self) -> int:
        return self.shape[0]


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: LazyMap, *others: Any) -> Any:
        return getattr(self.value(), name)(*map(dense, others))

    return operate


for _name in (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__"),
    *("__matmul__", "__rmatmul__", "__neg__", "__getitem__", "__iter__"),
    *("__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(LazyMap, _name, _operator(_name))


def dense(x: Any) -> Any:
    """Return the tensor that a lazy map stands for, and anything else as it is."""
    return x.value() if isinstance(x, LazyMap) else x


class SpikeMap(LazyMap):
    """Spikes as bits.

    Args:
        ghost: Carries shape, dtype and gradient; see `_maps.py`.
        bits: `[T, R, words]`.
    """

    def __init__(self, ghost: Tensor, bits: Tensor) -> None:
        super().__init__(ghost)
        self.ghost = ghost
        self.bits = bits

    def _compute(self) -> Tensor:
        return Unpack.apply(self.ghost, self.bits)

    def convolve(self, weight: Tensor, kernel: Kernel, is_sparse: bool) -> tuple[Tensor, Recipe]:
        """Return the convolution with a kernel `[O, I/groups, k, k]`, and how to repeat it."""
        options = (weight, kernel, is_sparse)
        rebuild = partial(convolve_spikes, kernel=kernel, is_sparse=is_sparse)
        y = SpikeConv.apply(self.ghost, self.bits, *options)
        return y, Recipe(rebuild, (self.ghost, self.bits, weight))


class CurrentMap(LazyMap):
    """A current before its norm, and perhaps what a shortcut adds to it.

    Args:
        y: What the synapse's map gave.
        recipe: What the backward pass keeps of it; default: itself.
        affine: What its norms do to it; `None` does nothing.
        residual: Is added.
        residual_is_saved: Whether the backward pass of another sum keeps it anyway.

    Attributes:
        is_stream: Whether the sum is wanted after a neuron has fired on it.
        is_saved: Whether the backward pass of a neuron keeps the sum.
    """

    def __init__(
        self,
        y: Tensor,
        recipe: Recipe | None = None,
        affine: Affine | None = None,
        residual: Tensor | None = None,
        residual_is_saved: bool = False,
    ) -> None:
        super().__init__(y)
        self.y = y
        self.recipe = Recipe.of(y) if recipe is None else recipe
        self.affine = affine
        self.parameters = () if affine is None else affine.parameters
        self.residual = residual
        self.residual_is_saved = residual_is_saved
        self.is_stream = False
        self.is_saved = False
        if affine is None and residual is None:
            self._value = y

    def _compute(self) -> Tensor:
        if self.affine is None:
            assert self.residual is not None  # else the value is known
            return self.y + self.residual
        return Add.apply(self.affine, self.recipe, self.y, self.residual, *self.parameters)

    def fire(self, firing: Firing) -> SpikeMap:
        """Return the spikes of a neuron; the sum is kept if this is a trunk's stream."""
        is_plain = self.affine is None and self.residual is None
        if self._value is not None and not is_plain:
            return CurrentMap(self._value).fire(firing)  # for the second time
        is_sum = self.residual is not None or (self.is_stream and not is_plain)
        # Of two sums in a row one is saved, and the other one follows from it.
        saves_residual = self.residual_is_saved
        ghost, bits, total = Fire.apply(
            firing,
            is_sum,
            saves_residual,
            self.affine,
            self.recipe,
            self.y,
            self.residual,
            *self.parameters,
        )
        self._value = total if is_sum else self._value
        self.is_saved = is_plain or (is_sum and not saves_residual)
        return SpikeMap(ghost, bits)

    def plus(self, other: Any) -> Any:
        """Return the sum with another map, as another such current where that is possible."""
        if isinstance(other, CurrentMap) and other._value is None and other.residual is None:
            total = self.value()
            return CurrentMap(other.y, other.recipe, other.affine, total, self.is_saved)
        other = dense(other)
        fits = isinstance(other, Tensor) and other.shape == self.shape and other.dtype == self.dtype
        if fits and self._value is None and self.residual is None:
            return CurrentMap(self.y, self.recipe, self.affine, other)
        return self.value() + other

    __add__ = plus
    __radd__ = plus
