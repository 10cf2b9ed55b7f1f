"""What is fast on a CPU: the native kernels of the LIF neuron, `csrc/lif.cpp`."""

import ctypes

import torch
from torch import Tensor

from spikeformers.ops.checks import laid_out_like
from spikeformers.ops.lif import eager
from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, Unsupported, dtype_code, or_else
from spikeformers.ops.surrogate import SURROGATES


class NeuronOptions(ctypes.Structure):
    """`struct NeuronOptions` of `csrc/neuron.h`, field by field."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("decay", "v_threshold", "v_reset", "alpha")),
        *(
            (name, ctypes.c_int32)
            for name in ("is_soft", "decay_input", "strict", "detach_reset", "surrogate")
        ),
    )


def neuron_options(
    decay: Tensor,
    v_threshold: Tensor,
    v_reset: float | None,
    decay_input: bool,
    *,
    strict: bool = False,
    detach_reset: bool = True,
    surrogate: str = "sigmoid",
    alpha: float = 1.0,
) -> NeuronOptions:
    """Return what the kernels need to know of a neuron with one decay and one threshold."""
    if decay.ndim or v_threshold.ndim:
        raise Unsupported("decay or threshold per channel")
    return NeuronOptions(
        decay.item(),
        v_threshold.item(),
        v_reset or 0.0,
        alpha,
        v_reset is None,
        decay_input,
        strict,
        detach_reset,
        sorted(SURROGATES).index(surrogate),
    )


_forward = Kernel("lif_forward", INT, POINTER, SIZE, SIZE, *[POINTER] * 4)
_backward = Kernel("lif_backward", INT, POINTER, SIZE, SIZE, *[POINTER] * 6)


@or_else(eager.lif_forward)
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
    options = neuron_options(decay, v_threshold, v_reset, decay_input, strict=strict)
    spikes, v = torch.empty_like(x), torch.empty_like(x[0], dtype=decay.dtype)
    v0 = None if v0 is None else laid_out_like(v0, v)
    _forward(dtype_code(x), ctypes.byref(options), len(x), v.numel(), x, v0, spikes, v)
    return spikes, v


@or_else(eager.lif_backward)
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
    """Gradients of `x` and `v0`; those of `decay` and `v_threshold`, which are fixed, are zero."""
    if learns_parameters:
        raise Unsupported("gradients of decay and threshold")
    options = neuron_options(
        decay,
        v_threshold,
        v_reset,
        decay_input,
        strict=strict,
        detach_reset=detach_reset,
        surrogate=surrogate,
        alpha=alpha,
    )
    grad_x, grad_v0 = torch.empty_like(x), torch.empty_like(x[0], dtype=decay.dtype)
    _backward(
        dtype_code(x),
        ctypes.byref(options),
        len(x),
        grad_v0.numel(),
        laid_out_like(grad_spikes, grad_x),
        None if _is_zero(grad_v) else laid_out_like(grad_v, grad_v0),
        x,
        None if v0 is None else laid_out_like(v0, grad_v0),
        grad_x,
        grad_v0,
    )
    return grad_x, grad_v0, torch.zeros_like(decay), torch.zeros_like(v_threshold)


def _is_zero(grad: Tensor) -> bool:
    """Whether a gradient is a single zero, expanded."""
    return grad.numel() > 0 and not any(grad.stride()) and grad[(0,) * grad.ndim].item() == 0
