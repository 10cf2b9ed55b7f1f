"""Autograd around norm, residual sum and neuron: what they compute and keep."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeformers.ops.norm_lif import (
    norm_add,
    norm_backward,
    norm_lif,
    norm_lif_backward,
    norm_products,
)
from spikeformers.transform._maps import Recipe, ghost_of, map_of, rows_of


class Firing(NamedTuple):
    """What a neuron does to a current; see `ops/lif`."""

    decay: Tensor
    v_threshold: Tensor
    v_reset: float | None
    decay_input: bool
    strict: bool
    detach_reset: bool
    surrogate: str
    alpha: float

    @property
    def forward_options(self) -> tuple[Any, ...]:
        """Arguments of `norm_lif`."""
        return self[:5]

    @property
    def backward_options(self) -> tuple[Any, ...]:
        """Arguments of `norm_lif_backward`."""
        return (*self[:4], *self[5:])


class Affine:
    """The map `gain y + offset` that batch norms in a row make of the moments of `y`.

    It is a function of vectors `[C]`, so plain autograd differentiates it: once it was built, it
    hands back what a gradient of gain and offset means for the moments and for the parameters.

    Args:
        moments: Mean and variance of the rows on this process, as leaves; none in eval mode.
        parameters: What gain and offset were made of, detached leaves of the real ones.
        gain: `[C]`, connected with both.
        offset: `[C]`, likewise.
    """

    def __init__(
        self, moments: list[Tensor], parameters: list[Tensor], gain: Tensor, offset: Tensor
    ) -> None:
        self.moments = moments
        self.parameters = parameters
        self.graph = gain, offset
        self.gain, self.offset = gain.detach(), offset.detach()

    def backward(
        self, grad_x: Tensor, y: Tensor, grad_gain: Tensor, grad_offset: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of the rows `y`, also through their moments, and the parameters'."""
        leaves = [leaf for leaf in (*self.moments, *self.parameters) if leaf.requires_grad]
        grads = torch.autograd.grad(
            self.graph, leaves, (grad_gain, grad_offset), retain_graph=True, allow_unused=True
        )
        grad_of = dict(zip(map(id, leaves), grads, strict=True))
        zero = torch.zeros_like(self.gain)
        slope, level = zero, zero
        if self.moments:
            mean, count = self.moments[0].detach(), y.shape[0] * y.shape[1]
            grad_mean, grad_var = (
                zero if (grad := grad_of[id(leaf)]) is None else grad / count
                for leaf in self.moments
            )
            slope, level = 2 * grad_var, grad_mean - 2 * grad_var * mean
        grad_y = norm_backward(grad_x, y, self.gain, slope, level)
        return grad_y, [grad_of.get(id(leaf)) for leaf in self.parameters]

    def backward_from_sum(self, grad_x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Return the same where no neuron follows."""
        return self.backward(grad_x, y, *norm_products(grad_x, y))


class Add(torch.autograd.Function):
    """`gain y + offset + residual` as a map."""

    @staticmethod
    def forward(
        ctx: Any,
        affine: Affine,
        recipe: Recipe,
        y: Tensor,
        residual: Tensor | None,
        *_parameters: Tensor,
    ) -> Tensor:
        """Return the sum; parameters are arguments so that autograd hands on their gradients."""
        ctx.affine, ctx.rebuild = affine, recipe.rebuild
        ctx.save_for_backward(*recipe.tensors)
        around = None if residual is None else rows_of(residual)
        return map_of(norm_add(rows_of(y), around, affine.gain, affine.offset), y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the residual is the gradient itself."""
        y = rows_of(ctx.rebuild(*ctx.saved_tensors))
        grad_y, grads = ctx.affine.backward_from_sum(rows_of(grad), y)
        grad_residual = grad if ctx.needs_input_grad[3] else None
        return None, None, map_of(grad_y, grad.shape), grad_residual, *grads


class Fire(torch.autograd.Function):
    """A norm, a shortcut and a neuron: ghost and bits of the spikes, and the sum if it is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        firing: Firing,
        returns_sum: bool,
        saves_residual: bool,
        affine: Affine | None,
        recipe: Recipe,
        y: Tensor,
        residual: Tensor | None,
        *_parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a ghost `[T, B, C, *S]`, bits `[T, R, words]` and the sum, if asked for.

        Of the sum and the residual one is saved, and the other follows from it.
        """
        ctx.firing, ctx.affine, ctx.rebuild = firing, affine, recipe.rebuild
        ctx.saves_residual = saves_residual
        bits, stream = norm_lif(
            rows_of(y),
            None if residual is None else rows_of(residual),
            None if affine is None else affine.gain,
            None if affine is None else affine.offset,
            *firing.forward_options,
            returns_sum,
        )
        total = map_of(stream, y.shape) if returns_sum else None
        ctx.save_for_backward(bits, residual if saves_residual else total, *recipe.tensors)
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        return ghost_of(y.shape, y), bits, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_spikes: Tensor | None, _: Tensor | None, grad_stream: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Run the membrane again and go back through neuron, sum and norm."""
        bits, saved, *tensors = ctx.saved_tensors
        y, affine = ctx.rebuild(*tensors), ctx.affine
        shape, y = y.shape, rows_of(y)
        stream = None if saved is None else rows_of(saved)
        if ctx.saves_residual:
            gain, offset = (None, None) if affine is None else (affine.gain, affine.offset)
            stream = norm_add(y, stream, gain, offset)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(map_of(y, shape))
        grad_x, grad_gain, grad_offset = norm_lif_backward(
            rows_of(grad_spikes),
            None if grad_stream is None else rows_of(grad_stream),
            bits,
            y,
            stream,
            None if affine is None else affine.gain,
            None if affine is None else affine.offset,
            *ctx.firing.backward_options,
        )
        grad_residual = map_of(grad_x, shape) if ctx.needs_input_grad[6] else None
        grads: list[Tensor | None] = []
        if affine is not None:
            grad_x, grads = affine.backward(grad_x, y, grad_gain, grad_offset)
        return *[None] * 5, map_of(grad_x, shape), grad_residual, *grads
