"""Autograd around the training kernels: what an accelerated model computes and keeps.

Spikes travel as bits, which cannot carry a gradient; a *ghost* travels with them, a tensor of their
shape and dtype without memory of its own, whose only use is to be differentiated.

Maps are `[T, B, C, *S]` with the channels last in memory; the kernels see them as rows `[T, R, C]`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from spikeformers.ops.bits import unpack
from spikeformers.ops.norm_lif import (
    norm_add,
    norm_backward,
    norm_lif,
    norm_lif_backward,
    norm_products,
)
from spikeformers.ops.spike_conv import spike_conv, spike_conv_weight_grad


def rows_of(x: Tensor) -> Tensor:
    """`[T, B, C, *S]` -> `[T, R, C]`, a view where the channels are last in memory."""
    return x.movedim(2, -1).reshape(x.shape[0], -1, x.shape[2])


def map_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """`[T, R, C]` -> a view of this shape, `[T, B, C, *S]`."""
    return rows.view(*shape[:2], *shape[3:], shape[2]).movedim(-1, 2)


def ghost_of(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of this shape that takes no memory."""
    return like.new_empty(()).expand(shape)


class Kernel(NamedTuple):
    """What a convolution does to a map, besides its weights."""

    stride: int
    padding: int
    groups: int


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
        self, grad_gain: Tensor, grad_offset: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return the gradients of the moments and of the parameters."""
        leaves = [leaf for leaf in (*self.moments, *self.parameters) if leaf.requires_grad]
        grads = torch.autograd.grad(
            self.graph, leaves, (grad_gain, grad_offset), retain_graph=True, allow_unused=True
        )
        found = dict(zip(map(id, leaves), grads, strict=True))
        return (
            [found.get(id(leaf)) for leaf in self.moments],
            [found.get(id(leaf)) for leaf in self.parameters],
        )

    def backward_to_rows(self, grad_x: Tensor, y: Tensor, grad_moments: list[Any]) -> Tensor:
        """Return the gradient of the rows `y`, through the map and through the moments."""
        zero = torch.zeros_like(self.gain)
        if not self.moments:
            return norm_backward(grad_x, y, self.gain, zero, zero)
        mean, count = self.moments[0].detach(), y.shape[0] * y.shape[1]
        grad_mean, grad_var = (zero if grad is None else grad / count for grad in grad_moments)
        return norm_backward(grad_x, y, self.gain, 2 * grad_var, grad_mean - 2 * grad_var * mean)


class Add(torch.autograd.Function):
    """`gain y + offset + residual` as a map."""

    @staticmethod
    def forward(
        ctx: Any, affine: Affine, y: Tensor, residual: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        """Return the sum; the parameters are arguments so that autograd hands on gradients."""
        ctx.affine = affine
        ctx.save_for_backward(y)
        around = None if residual is None else rows_of(residual)
        return map_of(norm_add(rows_of(y), around, affine.gain, affine.offset), y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute nothing: the gradient of the residual is the gradient itself."""
        (y,) = ctx.saved_tensors
        grad_x, rows = rows_of(grad), rows_of(y)
        grad_moments, grads = ctx.affine.backward(*norm_products(grad_x, rows))
        grad_y = map_of(ctx.affine.backward_to_rows(grad_x, rows, grad_moments), y.shape)
        return None, grad_y, grad if ctx.needs_input_grad[2] else None, *grads


class Fire(torch.autograd.Function):
    """A norm, a shortcut and a neuron: ghost and bits of the spikes, and the sum if it is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        firing: Firing,
        keeps_stream: bool,
        affine: Affine | None,
        y: Tensor,
        residual: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a ghost `[T, B, C, *S]`, bits `[T, R, words]` and the stream."""
        ctx.firing, ctx.affine = firing, affine
        bits, stream = norm_lif(
            rows_of(y),
            None if residual is None else rows_of(residual),
            None if affine is None else affine.gain,
            None if affine is None else affine.offset,
            *firing.forward_options,
            keeps_stream,
        )
        kept = map_of(stream, y.shape) if keeps_stream else None
        ctx.save_for_backward(y, bits, kept)
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        return ghost_of(y.shape, y), bits, kept

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_spikes: Tensor | None, _: Tensor | None, grad_stream: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Run the membrane again and go back through neuron, sum and norm."""
        y, bits, kept = ctx.saved_tensors
        rows, affine = rows_of(y), ctx.affine
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(y)
        grad_x, grad_gain, grad_offset = norm_lif_backward(
            rows_of(grad_spikes),
            None if grad_stream is None else rows_of(grad_stream),
            bits,
            rows,
            None if kept is None else rows_of(kept),
            None if affine is None else affine.gain,
            None if affine is None else affine.offset,
            *ctx.firing.backward_options,
        )
        grad_residual = map_of(grad_x, y.shape) if ctx.needs_input_grad[4] else None
        if affine is None:
            return None, None, None, map_of(grad_x, y.shape), grad_residual
        grad_moments, grads = affine.backward(grad_gain, grad_offset)
        grad_y = map_of(affine.backward_to_rows(grad_x, rows, grad_moments), y.shape)
        return None, None, None, grad_y, grad_residual, *grads


class Unpack(torch.autograd.Function):
    """Spikes as an ordinary map."""

    @staticmethod
    def forward(ctx: Any, ghost: Tensor, bits: Tensor) -> Tensor:  # noqa: ARG004
        """Return 0 and 1 in the dtype of the ghost."""
        return map_of(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Hand the gradient to the ghost."""
        return grad, None


class SpikeConv(torch.autograd.Function):
    """A convolution of spikes, of which only the bits are kept."""

    @staticmethod
    def forward(
        ctx: Any, ghost: Tensor, bits: Tensor, weight: Tensor, kernel: Kernel, is_sparse: bool
    ) -> Tensor:
        """`[T, B, C, H, W]` as ghost and bits -> `[T, B, C', H', W']`."""
        ctx.kernel, ctx.is_sparse = kernel, is_sparse
        ctx.save_for_backward(ghost, bits, weight)
        weight = weight.to(ghost.dtype)
        if is_sparse:
            words = bits.view(-1, *ghost.shape[3:], bits.shape[-1])
            y = spike_conv(words, weight, kernel.stride, kernel.padding, ghost.dtype).movedim(-1, 1)
        else:
            y = conv2d(_images(ghost, bits), weight, None, *kernel[:2], 1, kernel.groups)
        return y.unflatten(0, ghost.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Go back densely to the spikes, and by their bits to the weights."""
        ghost, bits, weight = ctx.saved_tensors
        kernel, grad_ghost, grad_weight = ctx.kernel, None, None
        grad = grad.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            images = grad_of_images(grad, weight.to(grad.dtype), ghost.shape[3:], kernel)
            grad_ghost = images.unflatten(0, ghost.shape[:2])
        if ctx.needs_input_grad[2] and ctx.is_sparse:
            words = bits.view(-1, *ghost.shape[3:], bits.shape[-1])
            size, rows = weight.shape, grad.movedim(1, -1)
            grad_weight = spike_conv_weight_grad(
                words, rows, size[1], size[2], kernel.stride, kernel.padding
            )
        elif ctx.needs_input_grad[2]:
            grad_weight = torch.nn.grad.conv2d_weight(
                _images(ghost, bits), weight.shape, grad, *kernel[:2], 1, kernel.groups
            )
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_ghost, None, grad_weight, None, None


def grad_of_images(
    grad: Tensor, weight: Tensor, size: torch.Size | tuple[int, int], kernel: Kernel
) -> Tensor:
    """Return the gradient of what a convolution saw, `[N, C', H', W']` -> `[N, C, *size]`."""
    reached = [
        (length - 1) * kernel.stride - 2 * kernel.padding + weight.shape[-1]
        for length in grad.shape[2:]
    ]
    missing = [full - got for full, got in zip(size, reached, strict=True)]
    return torch.nn.functional.conv_transpose2d(
        grad, weight, None, kernel.stride, kernel.padding, missing, kernel.groups
    )


def _images(ghost: Tensor, bits: Tensor) -> Tensor:
    """Spikes as images `[T*B, C, H, W]`."""
    return map_of(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape).flatten(0, 1)
