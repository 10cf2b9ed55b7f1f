"""What PyTorch sees: the neuron as a custom op with fake kernel, autograd and vmap."""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake, register_vmap

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import check_currents, membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.dsr import reference
from spikeformers.types import ANALOG, BINARY, Alphabet, Current, Membrane, Spikes


def dsr(
    x: Current,
    v0: Membrane | None = None,
    *,
    v_threshold: Tensor,
    alpha: float = 0.5,
    tau: float | None = None,
    dt: float = 1.0,
    threshold_grad: float = 1.0,
) -> tuple[Spikes, Membrane]:
    """Neurons that fire step by step and learn from what all their spikes stand for.

    `h[t] = v[t-1] + x[t]`, `s[t] = [h[t] >= alpha v_threshold]`, `v[t] = h[t] - v_threshold s[t]`,
    emits `v_threshold s[t]`; with a leak, and the gradient, see `ops/dsr/reference.py`.

    Args:
        x: Input current, time first.
        v0: Membrane at the start; `None` means rest, 0.
        v_threshold: What a spike takes from the membrane, 0-dim.
        alpha: Share of it at which a neuron fires, in (0, 1].
        tau: Membrane time constant, in the unit of `dt`; `None` is the IF neuron.
        dt: Length of a step; 1 for the IF neuron.
        threshold_grad: Factor of the threshold's gradient.

    Shape:
        x `[T, ...]`; v0 and the returned membrane `[...]`; output `[T, ...]`.

    Returns:
        Spikes of height `v_threshold / dt` in the dtype of `x`, and the final membrane (float32 for
        16-bit inputs, otherwise in the dtype of `x`), which carries no gradient.

    Raises:
        InputError: If an argument has the wrong shape, dtype or value.

    Reference:
        Meng et al., "Training High-Performance Low-Latency Spiking Neural Networks by
        Differentiation on Spike Representation", CVPR 2022, arXiv:2205.00459.
    """
    if not torch.compiler.is_compiling():
        check_currents(x, v0)
        check_dsr(alpha, tau, dt)
        if v_threshold.ndim:
            raise InputError(
                f"v_threshold has shape {list(v_threshold.shape)}: expected a 0-dim tensor"
            )
    v_threshold = v_threshold.to(membrane_dtype(x))
    y, v, _, _ = dsr_op(x, v0, v_threshold, alpha, tau, dt, threshold_grad)
    return y, v


def check_dsr(alpha: float, tau: float | None, dt: float) -> None:
    """Raise `InputError` for options that the op cannot work with."""
    if not 0 < alpha <= 1:
        raise InputError(f"alpha={alpha}: expected a share of the threshold in (0, 1]")
    if tau is None and dt != 1:
        raise InputError(f"dt={dt}: an IF neuron (tau=None) has steps of length 1")
    if tau is not None and (tau <= 0 or dt <= 0):
        raise InputError(f"tau={tau} and dt={dt}: expected two positive numbers")


@custom_op("spikeformers::dsr")
def dsr_op(
    x: Tensor,
    v0: Tensor | None,
    v_threshold: Tensor,
    alpha: float,
    tau: float | None,
    dt: float,
    threshold_grad: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, final membrane, where `x` is inside the clip and where above (for backward)."""
    del threshold_grad  # of the backward pass
    return reference.dsr_forward(x, v0, v_threshold, alpha, tau, dt)


@custom_op("spikeformers::dsr_backward")
def dsr_backward_op(
    grad_y: Tensor, inside: Tensor, above: Tensor, tau: float | None, dt: float
) -> tuple[Tensor, Tensor]:
    """Gradients of each step of `x` and of `v_threshold`, in the dtype of the membrane."""
    return reference.dsr_backward(grad_y, inside, above, tau, dt)


@register_fake(dsr_op)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    v = x.new_empty(x.shape[1:], dtype=membrane_dtype(x))
    inside, above = (torch.empty_like(v, dtype=torch.bool) for _ in range(2))
    return x.new_empty(x.shape), v, inside, above


@register_fake(dsr_backward_op)
def _(grad_y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    step = grad_y.new_empty(grad_y.shape[1:], dtype=membrane_dtype(grad_y))
    return step, step.new_empty(())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, ctx.tau, ctx.dt, ctx.threshold_grad = inputs
    y, v, inside, above = output
    ctx.mark_non_differentiable(v, inside, above)
    ctx.save_for_backward(inside, above)
    ctx.steps, ctx.x_dtype = len(y), y.dtype


def _backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Any, ...]:
    each, grad_threshold = dsr_backward_op(grad_y, *ctx.saved_tensors, ctx.tau, ctx.dt)
    grad_x = each.to(ctx.x_dtype).expand(ctx.steps, *each.shape)
    return grad_x, None, ctx.threshold_grad * grad_threshold, None, None, None, None


register_autograd(dsr_op, _backward, setup_context=_setup_context)
declare_alphabet(dsr_op, lambda *_: (Alphabet(0, 1, None), ANALOG, BINARY, BINARY))


@register_vmap(dsr_op)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Every element is a neuron of its own, so the mapped axis joins the others."""
    x, v0, v_threshold, *options = args
    x_dim, v0_dim, threshold_dim, *_ = in_dims

    def mapped_first(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.expand(info.batch_size, *tensor.shape)
        return tensor.movedim(dim, 0)

    x = mapped_first(x, x_dim)
    v0 = None if v0 is None else mapped_first(v0, v0_dim)
    if threshold_dim is None:
        return dsr_op(x.transpose(0, 1), v0, v_threshold, *options), (1, 0, 0, 0)
    starts = [None] * info.batch_size if v0 is None else v0
    thresholds = mapped_first(v_threshold, threshold_dim)
    each = [dsr_op(*case, *options) for case in zip(x, starts, thresholds, strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0, 0, 0)
