"""Autograd around the training kernels: what an accelerated model computes and keeps.

Spikes travel as bits, which cannot carry a gradient; a *ghost* travels with them, a tensor of their
shape and dtype without memory of its own, whose only use is to be differentiated.

Maps are `[T, B, C, *S]` with the channels last in memory; the kernels see them as rows `[T, R, C]`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, conv_transpose2d
from torch.nn.grad import conv2d_weight

from spikeformers.ops.bits import unpack
from spikeformers.ops.depthwise import depthwise_weight_grad
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


def convolve_spikes(
    ghost: Tensor, bits: Tensor, weight: Tensor, kernel: Kernel, is_sparse: bool
) -> Tensor:
    """Return the map `[T, B, C', H', W']` of spikes `[T, B, C, H, W]`."""
    weight = weight.to(ghost.dtype)
    if is_sparse:
        words = bits.view(-1, *ghost.shape[3:], bits.shape[-1])
        y = spike_conv(words, weight, kernel.stride, kernel.padding, ghost.dtype).movedim(-1, 1)
    else:
        y = conv2d(_images(ghost, bits), weight, None, *kernel[:2], 1, kernel.groups)
    return y.unflatten(0, ghost.shape[:2])


class SpikeConv(torch.autograd.Function):
    """A convolution of spikes, of which only the bits are kept."""

    @staticmethod
    def forward(
        ctx: Any, ghost: Tensor, bits: Tensor, weight: Tensor, kernel: Kernel, is_sparse: bool
    ) -> Tensor:
        """See `convolve_spikes`."""
        ctx.kernel, ctx.is_sparse = kernel, is_sparse
        ctx.save_for_backward(ghost, bits, weight)
        return convolve_spikes(ghost, bits, weight, kernel, is_sparse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Go back densely to the spikes, and by their bits to the weights."""
        ghost, bits, weight = ctx.saved_tensors
        kernel, grad_ghost, grad_weight = ctx.kernel, None, None
        grad = _channels_last(grad.flatten(0, 1))
        if ctx.needs_input_grad[0]:
            images = grad_of_images(grad, weight, ghost.shape[3:], kernel)
            grad_ghost = images.unflatten(0, ghost.shape[:2])
        if ctx.needs_input_grad[2] and ctx.is_sparse:
            words = bits.view(-1, *ghost.shape[3:], bits.shape[-1])
            found = spike_conv_weight_grad(
                words, grad.movedim(1, -1), *weight.shape[1:3], kernel.stride, kernel.padding
            )
            grad_weight = _like(weight, found)
        elif ctx.needs_input_grad[2]:
            grad_weight = grad_of_weight(grad, _images(ghost, bits), weight, kernel)
        return grad_ghost, None, grad_weight, None, None


def convolve_map(x: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    """`[T, B, C, H, W]` -> `[T, B, C', H', W']`."""
    images = _channels_last(x.flatten(0, 1))
    y = conv2d(images, weight.to(x.dtype), None, *kernel[:2], 1, kernel.groups)
    return y.unflatten(0, x.shape[:2])


class MapConv(torch.autograd.Function):
    """A convolution of a map that need not be kept because it can be computed again."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, x: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
        """See `convolve_map`."""
        ctx.rebuild, ctx.kernel = recipe.rebuild, kernel
        ctx.save_for_backward(weight, *recipe.tensors)
        return convolve_map(x, weight, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the map again."""
        weight, *tensors = ctx.saved_tensors
        x = ctx.rebuild(*tensors)
        grad = _channels_last(grad.flatten(0, 1))
        grad_weight = grad_of_weight(grad, _channels_last(x.flatten(0, 1)), weight, ctx.kernel)
        if not ctx.needs_input_grad[1]:
            return None, None, grad_weight, None
        grad_x = grad_of_images(grad, weight, x.shape[3:], ctx.kernel)
        return None, grad_x.unflatten(0, x.shape[:2]), grad_weight, None


def bordered_chain(
    y: Tensor, affine: Affine, border: Tensor, depthwise: Tensor, pointwise: Tensor
) -> Tensor:
    """Return the inside of a `RepConv`: norm, border, depthwise 3x3 and pointwise convolution.

    `[T, B, C, H, W]` -> `[T, B, C', H, W]`.
    """
    z = conv2d(_framed(y, affine, border), depthwise.to(y.dtype), groups=len(depthwise))
    return conv2d(z, pointwise.to(y.dtype)).unflatten(0, y.shape[:2])


def _framed(y: Tensor, affine: Affine, border: Tensor) -> Tensor:
    """Return `gain y + offset` with a border `[C]`, as images `[T*B, C, H+2, W+2]`."""
    steps, batch, channels, height, width = y.shape
    framed = y.new_empty(steps * batch, height + 2, width + 2, channels)
    for edge in (framed[:, 0], framed[:, -1], framed[:, :, 0], framed[:, :, -1]):
        edge.copy_(border)
    inside = norm_add(rows_of(y), None, affine.gain, affine.offset)
    framed[:, 1:-1, 1:-1] = inside.view(-1, height, width, channels)
    return framed.movedim(-1, 1)


class SpikeProduct(torch.autograd.Function):
    """`scale q (k^T v)` head by head, where of q, k and v only the bits are kept."""

    @staticmethod
    def forward(ctx: Any, heads: int, scale: float, *maps: Tensor) -> Tensor:
        """Ghosts and bits of q, k and v in turn -> `[T, B, C, H, W]`."""
        ctx.heads, ctx.scale = heads, scale
        ctx.save_for_backward(*maps)
        return spike_product(heads, scale, *maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Unpack the spikes again."""
        maps = ctx.saved_tensors
        ghosts, operands = maps[::2], _heads_of_spikes(maps, ctx.heads)
        with torch.enable_grad():
            leaves = [x.requires_grad_() for x in operands]
            y = _product(leaves, ctx.scale)
        grads = torch.autograd.grad(y, leaves, _heads(rows_of(grad), len(grad[0]), ctx.heads))
        found = [map_of(_rows(g, len(grad)), x.shape) for g, x in zip(grads, ghosts, strict=True)]
        return None, None, *(g for grad_x in found for g in (grad_x, None))


def spike_product(heads: int, scale: float, *maps: Tensor) -> Tensor:
    """Return `scale q (k^T v)` given ghosts and bits of q, k and v in turn."""
    rows = _rows(_product(_heads_of_spikes(maps, heads), scale), len(maps[0]))
    return map_of(rows, maps[4].shape)


def _product(qkv: Sequence[Tensor], scale: float) -> Tensor:
    """`[T*B, h, N, d]` -> `[T*B, h, N, d']`, in the cheaper order; see `layers/attention.py`."""
    q, k, v = qkv
    tokens, width = q.shape[-2:]
    return q @ (k.mT @ v * scale) if width < tokens else (q @ k.mT * scale) @ v


def _heads_of_spikes(maps: Sequence[Tensor], heads: int) -> list[Tensor]:
    return [
        _heads(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape[1], heads)
        for ghost, bits in zip(maps[::2], maps[1::2], strict=True)
    ]


def _heads(rows: Tensor, batch: int, heads: int) -> Tensor:
    """`[T, B*N, C]` -> `[T*B, h, N, d]`."""
    return rows.unflatten(1, (batch, -1)).flatten(0, 1).unflatten(2, (heads, -1)).transpose(1, 2)


def _rows(x: Tensor, steps: int) -> Tensor:
    """`[T*B, h, N, d]` -> `[T, B*N, C]`."""
    return x.transpose(1, 2).reshape(steps, -1, x.shape[1] * x.shape[3])


class BorderedChain(torch.autograd.Function):
    """See `bordered_chain`: only the map before the norm is kept, or what it is computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        affine: Affine,
        recipe: Recipe,
        y: Tensor,
        border: Tensor,
        depthwise: Tensor,
        pointwise: Tensor,
        *_parameters: Tensor,
    ) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, C', H, W]`."""
        ctx.affine, ctx.rebuild = affine, recipe.rebuild
        ctx.save_for_backward(border, depthwise, pointwise, *recipe.tensors)
        return bordered_chain(y, affine, border, depthwise, pointwise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the two maps in between again."""
        border, depthwise, pointwise, *tensors = ctx.saved_tensors
        y, affine, plain = ctx.rebuild(*tensors), ctx.affine, Kernel(1, 0, 1)
        framed = _framed(y, affine, border)
        z = conv2d(framed, depthwise.to(y.dtype), groups=len(depthwise))
        grad = _channels_last(grad.flatten(0, 1))
        grad_pointwise = grad_of_weight(grad, z, pointwise, plain)
        grad = grad_of_images(grad, pointwise, z.shape[2:], plain)
        per_channel = Kernel(1, 0, len(depthwise))
        grad_depthwise = grad_of_weight(grad, framed, depthwise, per_channel)
        grad = grad_of_images(grad, depthwise, framed.shape[2:], per_channel)
        inside = grad[..., 1:-1, 1:-1].unflatten(0, y.shape[:2])
        grad_y, grads = affine.backward_from_sum(rows_of(inside), rows_of(y))
        grad_y = map_of(grad_y, y.shape)
        return None, None, grad_y, None, grad_depthwise, grad_pointwise, *grads


def grad_of_images(
    grad: Tensor, weight: Tensor, size: torch.Size | tuple[int, int], kernel: Kernel
) -> Tensor:
    """Return the gradient of what a convolution saw, `[N, C', H', W']` -> `[N, C, *size]`."""
    side, is_depthwise = weight.shape[-1], kernel.groups == len(weight) == grad.shape[1]
    if is_depthwise and weight.shape[1] == kernel.stride == 1 and kernel.padding < side:
        # The same, and faster than PyTorch's own way.
        mirrored, around = weight.to(grad.dtype).flip(-2, -1), side - 1 - kernel.padding
        return conv2d(grad, mirrored, None, 1, around, 1, kernel.groups)
    reached = [
        (length - 1) * kernel.stride - 2 * kernel.padding + side for length in grad.shape[2:]
    ]
    missing = [full - got for full, got in zip(size, reached, strict=True)]
    return conv_transpose2d(grad, weight.to(grad.dtype), None, *kernel[:2], missing, kernel.groups)


def grad_of_weight(grad: Tensor, images: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    """Return the gradient of the kernel of a convolution of these images."""
    if kernel.groups == len(weight) == images.shape[1]:
        x, grad_y = images.movedim(1, -1), grad.movedim(1, -1)
        found = depthwise_weight_grad(x, grad_y, weight.shape[-1], kernel.stride, kernel.padding)
    else:
        found = conv2d_weight(images, weight.shape, grad, *kernel[:2], 1, kernel.groups)
    return _like(weight, found)


def _like(weight: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient in the dtype and layout of the weights, as DDP wants it."""
    if grad.dtype == weight.dtype and grad.stride() == weight.stride():
        return grad
    return torch.empty_like(weight).copy_(grad)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _images(ghost: Tensor, bits: Tensor) -> Tensor:
    """Spikes as images `[T*B, C, H, W]`."""
    return map_of(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape).flatten(0, 1)
