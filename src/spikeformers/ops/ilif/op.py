"""What PyTorch sees: the integer neuron as a custom op with fake kernel, autograd and vmap."""

from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake, register_vmap

from spikeformers.errors import InputError
from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import check_currents, membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.ilif import reference
from spikeformers.types import ANALOG, BINARY, Alphabet, Current, Membrane, Spikes


def ilif(
    x: Current,
    v0: Membrane | None = None,
    *,
    levels: int = 4,
    decay: float = 0.25,
    rounding: str = "half_even",
    v_threshold: float = 1.0,
) -> tuple[Spikes, Membrane]:
    """Integer leaky integrate-and-fire neurons over time.

    `u[t] = decay v[t-1] + x[t]`, `s[t] = round(clip(u[t] / v_threshold, 0, levels))`,
    `v[t] = u[t] - v_threshold s[t]`.

    Args:
        x: Input current, time first.
        v0: Membrane at the start; `None` means rest, 0.
        levels: Largest integer `D`; on hardware an integer is that many binary spikes.
        decay: Share of the remainder that survives a step, in [0, 1]; 0 remembers nothing.
        rounding: Where exact halves go: "half_even" or "half_up". The gradient passes straight
            through for levels in `[0, levels]`, with "half_up" in `(0, levels)`.
        v_threshold: Membrane per level.

    Shape:
        x `[T, ...]`; v0 and the returned membrane `[...]`; integers `[T, ...]`.

    Returns:
        Integers (0 to `levels`, in the dtype of `x`) and the final membrane, what the last step
        left over (float32 for 16-bit inputs, otherwise in the dtype of `x`).

    Raises:
        InputError: If an argument has the wrong shape, dtype or value.

    Reference:
        Luo et al., "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for
        High-performance and Energy-efficient Object Detection", ECCV 2024, arXiv:2407.20708.
    """
    if not torch.compiler.is_compiling():
        check_currents(x, v0)
        check_ilif(levels, decay, rounding, v_threshold)
    integers, v, _ = ilif_op(x, v0, levels, decay, rounding, v_threshold)
    return integers, v


def check_ilif(levels: int, decay: float, rounding: str, v_threshold: float) -> None:
    """Raise `InputError` for options that the op cannot work with."""
    if not isinstance(levels, int) or levels < 1:
        raise InputError(f"levels={levels}: expected a whole number of levels >= 1")
    if not 0 <= decay <= 1:
        raise InputError(f"decay={decay}: expected a number in [0, 1]")
    if rounding not in reference.ROUNDINGS:
        raise InputError(f"rounding={rounding!r} is unknown: choose 'half_even' or 'half_up'")
    if not v_threshold > 0:
        raise InputError(f"v_threshold={v_threshold}: expected a positive number")


@custom_op("spikeformers::ilif")
def ilif_op(
    x: Tensor,
    v0: Tensor | None,
    levels: int,
    decay: float,
    rounding: str,
    v_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, final membrane, and where the gradient passes (what backward needs)."""
    return reference.ilif_forward(x, v0, levels, decay, rounding, v_threshold)


@custom_op("spikeformers::ilif_backward")
def ilif_backward_op(
    grad_integers: Tensor, grad_v: Tensor, passing: Tensor, decay: float, v_threshold: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and `v0`, in the dtype of the membrane."""
    return reference.ilif_backward(grad_integers, grad_v, passing, decay, v_threshold)


@register_fake(ilif_op)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    v = x.new_empty(x.shape[1:], dtype=membrane_dtype(x))
    return x.new_empty(x.shape), v, x.new_empty(x.shape, dtype=torch.bool)


@register_fake(ilif_backward_op)
def _(_grad_integers: Tensor, grad_v: Tensor, passing: Tensor, *_: float) -> tuple[Tensor, Tensor]:
    return grad_v.new_empty(passing.shape), grad_v.new_empty(grad_v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, v0, _, ctx.decay, _, ctx.v_threshold = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])
    ctx.has_start, ctx.x_dtype, ctx.v_dtype = v0 is not None, x.dtype, output[1].dtype


def _backward(
    ctx: Any, grad_integers: Tensor | None, grad_v: Tensor | None, _: None
) -> tuple[Any, ...]:
    (passing,) = ctx.saved_tensors
    if grad_integers is None:
        grad_integers = torch.zeros_like(passing, dtype=ctx.v_dtype)
    if grad_v is None:
        grad_v = torch.zeros_like(passing[0], dtype=ctx.v_dtype)
    grad_x, grad_v0 = ilif_backward_op(grad_integers, grad_v, passing, ctx.decay, ctx.v_threshold)
    return grad_x.to(ctx.x_dtype), grad_v0 if ctx.has_start else None, *[None] * 4


register_autograd(ilif_op, _backward, setup_context=_setup_context)
declare_alphabet(ilif_op, lambda _x, _v0, levels, *_: (Alphabet(0, levels), ANALOG, BINARY))


@register_vmap(ilif_op)
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """Every element is a neuron of its own, so the mapped axis joins the others."""
    x, v0, *options = args
    x_dim, v0_dim, *_ = in_dims

    def mapped_first(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return tensor.expand(info.batch_size, *tensor.shape)
        return tensor.movedim(dim, 0)

    x = mapped_first(x, x_dim).transpose(0, 1)  # [T, V, ...]
    v0 = None if v0 is None else mapped_first(v0, v0_dim)
    return ilif_op(x, v0, *options), (1, 0, 1)
