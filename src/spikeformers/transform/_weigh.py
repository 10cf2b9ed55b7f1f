"""Autograd around synapses and products of spikes: what they compute and keep."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, conv_transpose2d
from torch.nn.grad import conv2d_weight

from spikeformers.ops.bits import unpack
from spikeformers.ops.depthwise import (
    depthwise_conv,
    depthwise_weight_grad,
    framed_depthwise,
    framed_depthwise_backward,
    spike_depthwise_conv,
    spike_depthwise_weight_grad,
)
from spikeformers.ops.qkv_product import qkv_product, qkv_product_backward
from spikeformers.ops.spike_conv import spike_conv, spike_conv_weight_grad
from spikeformers.ops.winograd import is_faster, winograd_conv
from spikeformers.transform._fire import Affine
from spikeformers.transform._maps import Recipe, map_of, rows_of


class Kernel(NamedTuple):
    """What a convolution does to a map, besides its weights."""

    stride: int
    padding: int
    groups: int


class Unpack(torch.autograd.Function):
    """Spikes as an ordinary map."""

    @staticmethod
    def forward(ctx: Any, ghost: Tensor, bits: Tensor) -> Tensor:  # noqa: ARG004
        """Return 0 and 1 in the dtype of the ghost."""
        return map_of(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """Hand the gradient to the ghost, in memory of its own; see `Fire.backward`."""
        return grad.clone(), None


def convolve_spikes(
    ghost: Tensor, bits: Tensor, weight: Tensor, kernel: Kernel, is_sparse: bool
) -> Tensor:
    """Return the map `[T, B, C', H', W']` of spikes `[T, B, C, H, W]`."""
    weight, words = weight.to(ghost.dtype), _words(ghost, bits)
    if is_sparse:
        y = spike_conv(words, weight, kernel.stride, kernel.padding, ghost.dtype).movedim(-1, 1)
    elif kernel.stride == 1 and _is_depthwise(weight, kernel):
        y = spike_depthwise_conv(words, weight, kernel.padding, ghost.dtype).movedim(-1, 1)
    else:
        y = _convolve(_images(ghost, bits), weight, kernel)
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
        if ctx.needs_input_grad[2]:
            grad_weight = _grad_by_spikes(grad, ghost, bits, weight, kernel, ctx.is_sparse)
        return grad_ghost, None, grad_weight, None, None


def _grad_by_spikes(
    grad: Tensor, ghost: Tensor, bits: Tensor, weight: Tensor, kernel: Kernel, is_sparse: bool
) -> Tensor:
    positions, words = grad.movedim(1, -1), _words(ghost, bits)
    shape = weight.shape[-1], kernel.stride, kernel.padding
    if is_sparse:
        return _like(weight, spike_conv_weight_grad(words, positions, weight.shape[1], *shape))
    if _is_depthwise(weight, kernel):
        return _like(weight, spike_depthwise_weight_grad(words, positions, *shape))
    return grad_of_weight(grad, _images(ghost, bits), weight, kernel)


def convolve_map(x: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    """`[T, B, C, H, W]` -> `[T, B, C', H', W']`."""
    y = _convolve(_channels_last(x.flatten(0, 1)), weight.to(x.dtype), kernel)
    return y.unflatten(0, x.shape[:2])


def _convolve(images: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    if kernel.stride == 1 and _is_depthwise(weight, kernel):
        return depthwise_conv(images.movedim(1, -1), weight, kernel.padding).movedim(-1, 1)
    return conv2d(images, weight, None, *kernel[:2], 1, kernel.groups)


def _is_depthwise(weight: Tensor, kernel: Kernel) -> bool:
    """Whether each channel is convolved by itself."""
    return kernel.groups == len(weight) and weight.shape[1] == 1


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
        """Go back by the bits."""
        maps = ctx.saved_tensors
        q, *_ = ghosts = maps[::2]
        bits = (_tokens(bits, q) for bits in maps[1::2])
        grads = qkv_product_backward(
            _tokens(rows_of(grad), q), *bits, q.shape[2], ctx.heads, ctx.scale
        )
        found = [map_of(g, ghost.shape) for g, ghost in zip(grads, ghosts, strict=True)]
        return None, None, *(g for grad_x in found for g in (grad_x, None))


def spike_product(heads: int, scale: float, *maps: Tensor) -> Tensor:
    """Return `scale q (k^T v)` given ghosts and bits of q, k and v in turn."""
    q, _, v = maps[::2]
    bits = (_tokens(bits, q) for bits in maps[1::2])
    y = qkv_product(*bits, q.shape[2], v.shape[2], heads, scale, v.dtype)
    return map_of(y, v.shape)


def _tokens(rows: Tensor, ghost: Tensor) -> Tensor:
    """`[T, B*N, ...]` -> `[T*B, N, ...]`."""
    return rows.reshape(-1, ghost.shape[3:].numel(), rows.shape[2])


def bordered_chain(
    y: Tensor, affine: Affine, border: Tensor, depthwise: Tensor, pointwise: Tensor
) -> Tensor:
    """Return the inside of a `RepConv`: norm, border, depthwise and pointwise convolution.

    `[T, B, C, H, W]` -> `[T, B, C', H, W]`.
    """
    z = framed_depthwise(_positions(y), affine.gain, affine.offset, border, depthwise)
    return conv2d(z.movedim(-1, 1), pointwise.to(y.dtype)).unflatten(0, y.shape[:2])


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
        """Compute the map between the convolutions again."""
        border, depthwise, pointwise, *tensors = ctx.saved_tensors
        y, affine = ctx.rebuild(*tensors), ctx.affine
        seen = _positions(y), affine.gain, affine.offset, border, depthwise
        z = framed_depthwise(*seen).movedim(-1, 1)
        grad = _channels_last(grad.flatten(0, 1))
        plain = Kernel(1, 0, 1)
        grad_pointwise = grad_of_weight(grad, z, pointwise, plain)
        grad = grad_of_images(grad, pointwise, z.shape[2:], plain)
        grad, grad_gain, grad_offset, grad_depthwise = framed_depthwise_backward(
            grad.movedim(1, -1), *seen
        )
        grad_y, grads = affine.backward(
            grad.view(rows_of(y).shape), rows_of(y), grad_gain, grad_offset, overwrites=True
        )
        grad_y, grad_depthwise = map_of(grad_y, y.shape), _like(depthwise, grad_depthwise)
        return None, None, grad_y, None, grad_depthwise, grad_pointwise, *grads


def grad_of_images(
    grad: Tensor, weight: Tensor, size: torch.Size | tuple[int, int], kernel: Kernel
) -> Tensor:
    """Return the gradient of what a convolution saw, `[N, C', H', W']` -> `[N, C, *size]`."""
    side, around = weight.shape[-1], weight.shape[-1] - 1 - kernel.padding
    if kernel.stride == 1 and around >= 0:  # then it is itself a convolution
        positions = grad.movedim(1, -1)
        if _is_depthwise(weight, kernel):
            return _convolve(grad, _mirrored(weight, grad), kernel._replace(padding=around))
        if kernel.groups == 1 and side == 3 and is_faster(positions, weight.shape[1], around):
            mirrored = _mirrored(weight, grad).transpose(0, 1)
            return winograd_conv(positions, mirrored, around).movedim(-1, 1)
    reached = [
        (length - 1) * kernel.stride - 2 * kernel.padding + side for length in grad.shape[2:]
    ]
    missing = [full - got for full, got in zip(size, reached, strict=True)]
    return conv_transpose2d(grad, weight.to(grad.dtype), None, *kernel[:2], missing, kernel.groups)


def _mirrored(weight: Tensor, grad: Tensor) -> Tensor:
    return weight.to(grad.dtype).flip(-2, -1)


def grad_of_weight(grad: Tensor, images: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    """Return the gradient of the kernel of a convolution of these images."""
    if _is_depthwise(weight, kernel):
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


def _positions(x: Tensor) -> Tensor:
    """`[T, B, C, H, W]` -> `[T*B, H, W, C]`."""
    return x.flatten(0, 1).movedim(1, -1)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _words(ghost: Tensor, bits: Tensor) -> Tensor:
    """Spike bits as images `[T*B, H, W, words]`."""
    return bits.view(-1, *ghost.shape[3:], bits.shape[-1])


def _images(ghost: Tensor, bits: Tensor) -> Tensor:
    """Spikes as images `[T*B, C, H, W]`."""
    return map_of(unpack(bits, ghost.shape[2], ghost.dtype), ghost.shape).flatten(0, 1)
