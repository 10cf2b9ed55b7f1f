"""What is true: batch norm, residual sum and LIF neuron on matrices `[T, R, C]`.

    x = gain y + offset + residual        a norm whose statistics are known, and the shortcut
    s, h = LIF(x)                         from rest, see ops/lif/reference.py

Rows `R` are the positions of all samples, channels come last. A norm is split in two: the moments
of `y`, and an affine map made of them. What the map owes to the moments is a matter of `[C]`
vectors, left to the caller; its share of the gradient of `y` is again affine, `norm_backward`.
16-bit tensors are computed with in float32.
"""

import torch
from torch import Tensor

from spikeformers.ops.bits import pack_reference as pack
from spikeformers.ops.bits import unpack_reference as unpack
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.lif.reference import lif_forward
from spikeformers.ops.surrogate import SURROGATES


def channel_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance `[C]` of `[T, R, C]`."""
    var, mean = torch.var_mean(y.to(membrane_dtype(y)), (0, 1), correction=0)
    return mean, var


def norm_add(
    y: Tensor, residual: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> Tensor:
    """`gain y + offset + residual`, each of which may be missing but `y`."""
    return _current(y, residual, gain, offset).to(y.dtype)


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
    """Spike bits `[T, R, words]` of `x = gain y + offset + residual`, and `x` if it is kept.

    A kept `x` is rounded to the dtype of `y` before the neuron sees it, so that the backward pass
    finds the very membrane that fired.
    """
    x = _current(y, residual, gain, offset)
    stream = x.to(y.dtype) if keeps_stream else y.new_empty(0)
    seen = stream.to(x.dtype) if keeps_stream else x
    spikes, _, _ = lif_forward(
        seen, None, decay, v_threshold, v_reset, decay_input, True, "sigmoid", 1.0, strict
    )
    return pack(spikes), stream


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
    """Gradients of `gain` and `offset` (`[C]`) where there is a norm, else of no length.

    The gradient of `x` (`[T, R, C]`) is written over that of the spikes. The membrane is computed
    again from `x`: from the stream if it was kept, else from `y`.
    """
    x = _current(y, None, gain, offset) if stream is None else stream.to(membrane_dtype(y))
    spikes = unpack(bits, y.shape[-1], x.dtype)
    h = _membranes(x, spikes, decay, v_threshold, v_reset, decay_input)
    slope = SURROGATES[surrogate].derivative(h - v_threshold, alpha)
    through = torch.zeros_like(slope) if detach_reset else slope
    dv_dh = 1 - v_threshold * through
    if v_reset is not None:
        dv_dh = 1 - spikes + (v_reset - h) * through
    grad_v, grads = torch.zeros_like(x[0]), []
    for t in reversed(range(len(x))):
        grads.append(grad_spikes[t].to(x.dtype) * slope[t] + grad_v * dv_dh[t])
        grad_v = grads[-1] * decay
    grad_x = torch.stack(grads[::-1]) * (1 - decay if decay_input else 1)
    if grad_stream is not None:
        grad_x = grad_x + grad_stream
    grad_spikes.copy_(grad_x)
    return (x.new_empty(0), x.new_empty(0)) if gain is None else norm_products(grad_x, y)


def norm_products(grad_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients `[C]` of gain and offset: the sums of `grad_x y` and of `grad_x`."""
    wide = grad_x.to(membrane_dtype(y))
    return (wide * y).sum((0, 1)), wide.sum((0, 1))


def norm_backward(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a grad_x + b y + c`, the gradient of `y`, directly and through its moments."""
    wide = membrane_dtype(y)
    return (a * grad_x.to(wide) + b * y.to(wide) + c).to(y.dtype)


def norm_backward_(grad_x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """`norm_backward` in the memory of `grad_x`."""
    grad_x.copy_(norm_backward(grad_x, y, a, b, c))


def _current(
    y: Tensor, residual: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> Tensor:
    x = y.to(membrane_dtype(y))
    if gain is not None and offset is not None:
        x = gain * x + offset
    return x if residual is None else x + residual


def _membranes(
    x: Tensor,
    spikes: Tensor,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
) -> Tensor:
    """Membrane before each reset, given what fired."""
    rest = v_reset or 0.0
    v, h = torch.full_like(x[0], rest), []
    for current, s in zip(x, spikes, strict=True):
        if decay_input:
            v = v + (1 - decay) * (current - (v - rest))
        else:
            v = rest + decay * (v - rest) + current
        h.append(v)
        v = v - v_threshold * s if v_reset is None else v * (1 - s) + v_reset * s
    return torch.stack(h)
