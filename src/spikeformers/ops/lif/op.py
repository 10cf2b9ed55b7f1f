"""What PyTorch sees: the LIF neuron as a custom op with fake kernel, autograd and vmap.

The op always takes decay and threshold as tensors (0-dim or `[C]`), so that constants, learned
scalars and per-channel values share one kernel. The device of `x` chooses the kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import impl, register_autograd, register_fake, register_vmap

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import check_currents, in_steps, membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.gpu import on_gpu
from spikeformers.ops.lif import eager, native
from spikeformers.ops.surrogate import SURROGATES
from spikeformers.types import ANALOG, BINARY, Current, Membrane, Spikes


def lif(
    x: Current,
    v0: Membrane | None = None,
    *,
    decay: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str = "sigmoid",
    alpha: float | None = None,
    strict: bool = False,
) -> tuple[Spikes, Membrane]:
    """Leaky integrate-and-fire neurons over time.

    `h[t] = v[t-1] + (1 - decay) (x[t] - v[t-1])`, `s[t] = [h[t] >= v_threshold]`, then reset; the
    other forms stand in `ops/lif/reference.py`.

    Args:
        x: Input current, time first.
        v0: Membrane at the start; `None` means rest (`v_reset`, or 0 for the soft reset).
        decay: Share of the membrane that survives a step, `1 - 1/tau`, in [0, 1]. A number, or a
            tensor: 0-dim, or `[C]` along axis 2 of `x`.
        v_threshold: Firing threshold, like `decay` a number or a tensor.
        v_reset: Potential after a spike; `None` subtracts the threshold instead (soft reset).
        decay_input: Whether the input, too, is multiplied by `1 - decay`.
        detach_reset: Whether the gradient ignores the path through the reset.
        surrogate: Name of the surrogate derivative, see `ops/surrogate.py`.
        alpha: Sharpness of the surrogate; `None` is its customary value (sigmoid 4, atan 2,
            rectangle 1, tanh 2.5).
        strict: Fire at `h > v_threshold` instead of `>=`.

    Shape:
        x `[T, ...]`; v0 and the returned membrane `[...]`; spikes `[T, ...]`.

    Returns:
        Spikes (0 or 1 in the dtype of `x`) and the final membrane (float32 for 16-bit inputs,
        otherwise in the dtype of `x`).

    Raises:
        InputError: If an argument has the wrong shape, dtype or value.
    """
    if not torch.compiler.is_compiling():
        check_lif(x, v0, decay, v_threshold, surrogate)
    spikes, v = lif_op(
        x,
        v0,
        _as_tensor(decay, x),
        _as_tensor(v_threshold, x),
        v_reset,
        decay_input,
        detach_reset,
        surrogate,
        SURROGATES[surrogate].alpha if alpha is None else alpha,
        strict,
    )
    return spikes, v


def check_lif(
    x: Tensor, v0: Tensor | None, decay: float | Tensor, v_threshold: float | Tensor, surrogate: str
) -> None:
    """Raise `InputError` for arguments that the op cannot work with."""
    check_currents(x, v0)
    if surrogate not in SURROGATES:
        raise InputError(f"surrogate={surrogate!r} is unknown: choose from {sorted(SURROGATES)}")
    if isinstance(decay, int | float) and not 0 <= decay <= 1:
        raise InputError(f"decay={decay}: expected a number in [0, 1], 1 - 1/tau")
    for name, value in (("decay", decay), ("v_threshold", v_threshold)):
        if isinstance(value, Tensor) and value.ndim and value.shape != x.shape[2:3]:
            raise InputError(
                f"{name} has shape {list(value.shape)}: expected a number, a 0-dim tensor or one "
                f"value per channel (axis 2 of x, which has shape {list(x.shape)})"
            )


def _as_tensor(value: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(membrane_dtype(x))
    return torch.full((), value, dtype=membrane_dtype(x), device=x.device)


@custom_op("spikeformers::lif")
def lif_op(
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
) -> tuple[Tensor, Tensor]:
    """Spikes and final membrane."""
    del detach_reset, surrogate, alpha  # of the backward pass
    return native.lif_forward(in_steps(x), v0, decay, v_threshold, v_reset, decay_input, strict)


@custom_op("spikeformers::lif_backward")
def lif_backward_op(
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
    """Gradients of `x`, `v0`, and, if they are learned, of `decay` and `v_threshold`.

    The membrane is computed again from the currents, so that nothing else is kept for it.
    """
    return native.lif_backward(
        grad_spikes,
        grad_v,
        in_steps(x),
        v0,
        decay,
        v_threshold,
        v_reset,
        decay_input,
        detach_reset,
        surrogate,
        alpha,
        strict,
        learns_parameters,
    )


_forward_on_gpu = on_gpu("spikeformers.ops.lif.triton.lif_forward", eager.lif_forward)
_backward_on_gpu = on_gpu("spikeformers.ops.lif.triton.lif_backward", eager.lif_backward)


@impl(lif_op.name(), "cuda")
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *args_of_both, _detach_reset, _surrogate, _alpha, strict = args
    return _forward_on_gpu(in_steps(x), *args_of_both, strict)


@impl(lif_backward_op.name(), "cuda")
def _(
    grad_spikes: Tensor, grad_v: Tensor, x: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _backward_on_gpu(grad_spikes, grad_v, in_steps(x), *args)


@register_fake(lif_op)
def _(x: Tensor, _v0: Tensor | None, decay: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    x = in_steps(x)
    return torch.empty_like(x), torch.empty_like(x[0], dtype=decay.dtype)


@register_fake(lif_backward_op)
def _(
    _grad_spikes: Tensor,
    _grad_v: Tensor,
    x: Tensor,
    _v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    x = in_steps(x)
    grad_v0 = torch.empty_like(x[0], dtype=decay.dtype)
    return torch.empty_like(x), grad_v0, torch.empty_like(decay), torch.empty_like(v_threshold)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, v0, decay, v_threshold, *ctx.options = inputs
    # Zeros for the gradient of a membrane that nobody reads would cost as much as a time step.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, v0, decay, v_threshold)
    ctx.learns_parameters, ctx.membrane = any(ctx.needs_input_grad[2:4]), output[1].dtype


def _backward(ctx: Any, grad_spikes: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
    x, v0, decay, v_threshold = ctx.saved_tensors
    grad_spikes = torch.zeros_like(x) if grad_spikes is None else grad_spikes
    if grad_v is None:  # nobody has read the final membrane: one zero, without memory for more
        grad_v = x.new_zeros((), dtype=ctx.membrane).expand(x.shape[1:])
    grad_x, grad_v0, grad_decay, grad_threshold = lif_backward_op(
        grad_spikes, grad_v, x, v0, decay, v_threshold, *ctx.options, ctx.learns_parameters
    )
    return (
        grad_x,
        None if v0 is None else grad_v0,
        grad_decay,
        grad_threshold,
        *[None] * len(ctx.options),
    )


register_autograd(lif_op, _backward, setup_context=_setup_context)
declare_alphabet(lif_op, lambda *_: (BINARY, ANALOG))


@register_vmap(lif_op)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Fold the mapped axis into the batch; a mapped decay or threshold takes one call each."""
    x, v0, decay, v_threshold, *options = args
    x_dim, v0_dim, decay_dim, threshold_dim, *_ = in_dims

    def mapped_first(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.expand(info.batch_size, *tensor.shape)
        return tensor.movedim(dim, 0)

    x = mapped_first(x, x_dim)
    v0 = None if v0 is None else mapped_first(v0, v0_dim)
    if decay_dim is not None or threshold_dim is not None:
        decays = mapped_first(decay, decay_dim)
        thresholds = mapped_first(v_threshold, threshold_dim)
        starts = [None] * info.batch_size if v0 is None else v0
        each = [lif_op(*case, *options) for case in zip(x, starts, decays, thresholds, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0)

    x = x.movedim(0, 1)  # [T, V, ...]
    step = x.shape[1:]
    if x.ndim > 2:
        x = x.flatten(1, 2)
        v0 = None if v0 is None else v0.flatten(0, 1)
    spikes, v = lif_op(x, v0, decay, v_threshold, *options)
    if len(step) > 1:
        spikes, v = spikes.unflatten(1, step[:2]), v.unflatten(0, step[:2])
    return (spikes, v), (1, 0)
