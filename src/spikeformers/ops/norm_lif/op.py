"""What PyTorch sees of `norm_lif`: custom ops on matrices `[T, R, C]`, without autograd.

`transform/accelerate.py` joins them in one autograd function per neuron, because what stands
between moments and affine map differs from layer to layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import impl, register_fake

from spikeformers.ops.bits import words
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.gpu import on_gpu
from spikeformers.ops.norm_lif import native, reference


@custom_op("spikeformers::channel_moments")
def channel_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance `[C]` of `[T, R, C]`."""
    return native.channel_moments(y)


@custom_op("spikeformers::norm_add")
def norm_add(
    y: Tensor, residual: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> Tensor:
    """`gain y + offset + residual`, `[T, R, C]`, each of which may be missing but `y`."""
    return native.norm_add(y, residual, gain, offset)


@custom_op("spikeformers::norm_lif")
def norm_lif(
    y: Tensor,
    residual: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    strict: bool,
    keeps_stream: bool,
) -> tuple[Tensor, Tensor]:
    """Spike bits `[T, R, words]` of `x = gain y + offset + residual`, and `x` if it is kept."""
    return native.norm_lif(
        y,
        residual,
        gain,
        offset,
        decay,
        v_threshold,
        v_reset,
        decay_input,
        strict,
        keeps_stream,
    )


@custom_op("spikeformers::norm_lif_backward_", mutates=("grad_spikes",))
def norm_lif_backward_(
    grad_spikes: Tensor,
    grad_stream: Tensor | None,
    bits: Tensor,
    y: Tensor,
    stream: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `gain` and `offset` `[C]` where there is a norm; see `reference.py`.

    That of `x`, `[T, R, C]`, is written over `grad_spikes`.
    """
    return native.norm_lif_backward_(
        grad_spikes,
        grad_stream,
        bits,
        y,
        stream,
        gain,
        offset,
        decay,
        v_threshold,
        v_reset,
        decay_input,
        detach_reset,
        surrogate,
        alpha,
    )


@custom_op("spikeformers::norm_backward")
def norm_backward(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a grad_x + b y + c`, the gradient of `y`, directly and through its moments."""
    return native.norm_backward(grad_x, y, a, b, c)


@custom_op("spikeformers::norm_backward_", mutates=("grad_x",))
def norm_backward_(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """`norm_backward` in the memory of `grad_x`."""
    native.norm_backward_(grad_x, y, a, b, c)


@impl(norm_backward_.name(), "cuda")
def _(grad_x: Tensor, *others: Tensor) -> None:
    grad_x.copy_(norm_backward(grad_x, *others))


@custom_op("spikeformers::norm_products")
def norm_products(grad_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients `[C]` of gain and offset where no neuron follows: sums of `grad_x y`, `grad_x`."""
    return native.norm_products(grad_x, y)


for _op, _function in (
    (channel_moments, reference.channel_moments),
    (norm_add, reference.norm_add),
    (norm_lif, reference.norm_lif),
    (norm_lif_backward_, reference.norm_lif_backward_),
    (norm_backward, reference.norm_backward),
    (norm_products, reference.norm_products),
):
    _kernel = f"spikeformers.ops.norm_lif.triton.{_function.__name__}"
    impl(_op.name(), "cuda", on_gpu(_kernel, _function))


@register_fake(channel_moments)
def _(y: Tensor) -> tuple[Tensor, Tensor]:
    mean = y.new_empty(y.shape[-1], dtype=membrane_dtype(y))
    return mean, torch.empty_like(mean)


@register_fake(norm_add)
def _(y: Tensor, *_: Any) -> Tensor:
    return y.new_empty(y.shape)


@register_fake(norm_lif)
def _(y: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    bits = y.new_empty((*y.shape[:-1], words(y.shape[-1])), dtype=torch.int64)
    return bits, y.new_empty(y.shape if options[-1] else 0)


@register_fake(norm_lif_backward_)
def _(
    _grad_spikes: Tensor,
    _grad_stream: Tensor | None,
    _bits: Tensor,
    y: Tensor,
    _stream: Tensor | None,
    gain: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    grad_gain = y.new_empty(0 if gain is None else y.shape[-1], dtype=membrane_dtype(y))
    return grad_gain, torch.empty_like(grad_gain)


@register_fake(norm_backward)
def _(grad_x: Tensor, *_: Any) -> Tensor:
    return grad_x.new_empty(grad_x.shape)


@register_fake(norm_backward_)
def _(*_: Any) -> None:
    pass


@register_fake(norm_products)
def _(_grad_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    grad_gain = y.new_empty(y.shape[-1], dtype=membrane_dtype(y))
    return grad_gain, torch.empty_like(grad_gain)
