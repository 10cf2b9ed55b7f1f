# Kernels are written in Triton's language, which knows no type annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What is fast on a GPU: the LIF neuron in Triton, its membrane in registers for all of `T`.

Every program owns a block of neurons and walks through time. The backward pass walks forth, to
compute the membranes again, and back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeformers.ops.checks import laid_out_like
from spikeformers.ops.gpu import launch
from spikeformers.ops.lif.eager import _sum_like as sum_like
from spikeformers.ops.lif.triton_step import (
    Dynamics,
    backwards,
    block_of,
    charge,
    fires,
    reset,
    reset_derivatives,
    surrogate_derivative,
)


@triton.jit
def _of_neuron(parameter, i, channels, stride):
    """Decay or threshold of the neurons `i`: one number (`channels` None) or one per channel."""
    return tl.load(parameter if channels is None else parameter + i // stride % channels)


@triton.jit
def _start(v0, i, mine, dtype: tl.constexpr, neuron: tl.constexpr):
    """Membrane before the first step."""
    return tl.full(i.shape, neuron.rest, dtype) if v0 is None else tl.load(v0 + i, mine, 0.0)


@triton.jit
def _forward(
    x,
    v0,
    decay,
    v_threshold,
    spikes,
    v_end,
    T,
    size,
    decay_channels,
    threshold_channels,
    stride,
    neuron: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at, mine = i, i < size
    d = _of_neuron(decay, i, decay_channels, stride)
    threshold = _of_neuron(v_threshold, i, threshold_channels, stride)
    v = _start(v0, i, mine, d.dtype, neuron)
    for _ in range(T):
        h = charge(v, tl.load(x + at, mine, 0.0).to(d.dtype), d, neuron)
        s = fires(h, threshold, neuron)
        tl.store(spikes + at, s, mine)
        v = reset(h, s, threshold, neuron)
        at += size
    tl.store(v_end + i, v, mine)


@triton.jit
def _backward(
    grad_spikes,
    grad_v,
    x,
    v0,
    decay,
    v_threshold,
    grad_x,
    grad_v0,
    grad_decay,
    grad_threshold,
    first,
    size,
    decay_channels,
    threshold_channels,
    stride,
    neuron: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at, mine = i, i < size
    d = _of_neuron(decay, i, decay_channels, stride)
    threshold = _of_neuron(v_threshold, i, threshold_channels, stride)
    v = _start(v0, i, mine, d.dtype, neuron)
    if first is not None:
        for _ in range(first):
            h = charge(v, tl.load(x + at, mine, 0.0).to(d.dtype), d, neuron)
            v = reset(h, fires(h, threshold, neuron), threshold, neuron)
            at += size
    steps = ()
    for _ in tl.static_range(T):
        current = tl.load(x + at, mine, 0.0).to(d.dtype)
        h = charge(v, current, d, neuron)
        steps += ((current, v, h),)  # type: ignore[assignment]
        v = reset(h, fires(h, threshold, neuron), threshold, neuron)
        at += size

    grad = tl.load(grad_v + i, mine, 0.0)
    of_decay, of_threshold = tl.zeros_like(v), tl.zeros_like(v)
    for back in tl.static_range(T):
        at -= size
        current, v, h = steps[T - 1 - back]
        s, slope = fires(h, threshold, neuron), surrogate_derivative(h - threshold, neuron)
        by_h, by_threshold = reset_derivatives(h, s, slope, threshold, neuron)
        fired = tl.load(grad_spikes + at, mine, 0.0).to(d.dtype) * slope
        of_threshold += grad * by_threshold - fired
        grad_h = fired + grad * by_h
        grad = grad_h * d
        tl.store(grad_x + at, grad_h * (1 - d) if neuron.decay_input else grad_h, mine)
        of_decay += grad_h * (v - neuron.rest - (current if neuron.decay_input else 0))
    tl.store(grad_v0 + i, grad, mine)
    if grad_decay is not None:
        tl.store(grad_decay + i, tl.load(grad_decay + i, mine) + of_decay, mine)
        tl.store(grad_threshold + i, tl.load(grad_threshold + i, mine) + of_threshold, mine)


def lif_forward(
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Spikes `[T, ...]` and final membrane `[...]`."""
    spikes, v = torch.empty_like(x), torch.empty_like(x[0], dtype=decay.dtype)
    launch(
        _forward,
        (triton.cdiv(v.numel(), 1024),),
        x,
        None if v0 is None else laid_out_like(v0, v),
        decay,
        v_threshold,
        spikes,
        v,
        len(x),
        *_sizes(x, decay, v_threshold),
        neuron=Dynamics(v_reset, decay_input, strict),
        BLOCK=1024,
    )
    return spikes, v


def lif_backward(
    grad_spikes: Tensor,
    grad_v: Tensor,
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
    learns_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `x`, `v0`, and of `decay` and `v_threshold`, zeros where they are fixed."""
    grad_x, grad_spikes = torch.empty_like(x), laid_out_like(grad_spikes, x)
    grad_v = laid_out_like(grad_v, x[0]).clone()
    of_neurons = [torch.zeros_like(grad_v) if learns_parameters else None for _ in range(2)]
    for first, length in backwards(len(x)):
        launch(
            _backward,
            (triton.cdiv(grad_v.numel(), block_of(length)),),
            grad_spikes,
            grad_v,
            x,
            None if v0 is None else laid_out_like(v0, grad_v),
            decay,
            v_threshold,
            grad_x,
            grad_v,
            *of_neurons,
            first or None,
            *_sizes(x, decay, v_threshold),
            neuron=Dynamics(v_reset, decay_input, strict, detach_reset, surrogate, alpha),
            T=length,
            BLOCK=block_of(length),
        )
    grad_decay, grad_threshold = (
        torch.zeros_like(parameter) if of_neuron is None else sum_like(of_neuron[None], parameter)
        for of_neuron, parameter in zip(of_neurons, (decay, v_threshold), strict=True)
    )
    return grad_x, grad_v, grad_decay, grad_threshold


def _sizes(x: Tensor, decay: Tensor, v_threshold: Tensor) -> tuple[int | None, ...]:
    """Neurons, channels of both parameters, and the way in memory from one channel to the next."""
    channels = (len(parameter) if parameter.ndim else None for parameter in (decay, v_threshold))
    return x[0].numel(), *channels, x.stride(2) if x.ndim > 2 else 1
