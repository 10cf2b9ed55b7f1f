"""Autograd around norm, residual sum and neuron: what they compute and keep."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikeformers.layers.synapse import BatchNorm, moments_over_ranks
from spikeformers.ops.fold_norms import Moments, Norm, fold_norms, fold_norms_backward
from spikeformers.ops.norm_lif import (
    channel_moments,
    norm_add,
    norm_backward,
    norm_backward_,
    norm_lif,
    norm_lif_backward_,
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
        """Arguments of `norm_lif_backward_`."""
        return (*self[:4], *self[5:])


class Affine:
    """The map `gain y + offset` that batch norms in a row make of the moments of `y`.

    Args:
        y: A map; it is looked at if a norm is in training mode.
        norms: In order; those in training mode move their running statistics.
        bias: Is added to `y` in front of them.

    Attributes:
        parameters: What gain and offset were made of.
    """

    def __init__(self, y: Tensor, norms: Sequence[BatchNorm], bias: Tensor | None = None) -> None:
        self.parameters: list[Tensor] = [p for norm in norms for p in (norm.weight, norm.bias)]
        self.parameters += [] if bias is None else [bias]
        self.training = [norm.training for norm in norms]
        self.moments: Moments | None = None
        if any(self.training):
            mean, var = channel_moments(rows_of(y.detach()))
            mean, var, total = moments_over_ranks(mean, var, y.numel() // y.shape[2])
            self.moments = Moments(mean, var, float(total))
        vectors = [_vectors_of(norm) for norm in norms]
        self.gain, self.offset, self.tape = fold_norms(vectors, bias, self.moments)

    def backward(
        self,
        grad_x: Tensor,
        y: Tensor,
        grad_gain: Tensor,
        grad_offset: Tensor,
        overwrites: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the gradients of the rows `y`, also through their moments, and the parameters'.

        Nobody else wants `grad_x` where that `overwrites` it.
        """
        grads, through = fold_norms_backward(
            grad_gain, grad_offset, self.training, self.moments, self.tape
        )
        if self.moments is not None and dist.is_available() and dist.is_initialized():
            dist.all_reduce(through)  # all ranks have used these moments
        if overwrites:
            norm_backward_(grad_x, y, self.gain, *through.unbind())
        else:
            grad_x = norm_backward(grad_x, y, self.gain, *through.unbind())
        return grad_x, grads.unbind()[: len(self.parameters)]

    def backward_from_sum(self, grad_x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the same where no neuron follows."""
        return self.backward(grad_x, y, *norm_products(grad_x, y))


def _vectors_of(norm: BatchNorm) -> Norm:
    """Return what folding takes of a norm, which counts this batch."""
    share = 0.0
    if norm.training:
        norm.num_batches_tracked.add_(1)
        # Without a momentum all batches weigh the same.
        share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    statistics = norm.running_mean, norm.running_var
    return Norm(norm.weight, norm.bias, *statistics, norm.eps, share, norm.training)


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
        grad_x = rows_of(grad_spikes)  # is overwritten: nobody else has the gradient of a ghost
        grad_gain, grad_offset = norm_lif_backward_(
            grad_x,
            None if grad_stream is None else rows_of(grad_stream),
            bits,
            y,
            stream,
            None if affine is None else affine.gain,
            None if affine is None else affine.offset,
            *ctx.firing.backward_options,
        )
        grad_residual = map_of(grad_x, shape) if ctx.needs_input_grad[6] else None
        grads: Sequence[Tensor] = ()
        if affine is not None:
            is_wanted = ctx.needs_input_grad[6]
            grad_x, grads = affine.backward(grad_x, y, grad_gain, grad_offset, not is_wanted)
        return *[None] * 5, map_of(grad_x, shape), grad_residual, *grads
