"""What every neuron op asks of its currents and its start."""

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from spikeformers.errors import InputError


def membrane_dtype(x: Tensor) -> torch.dtype:
    """Membranes of 16-bit currents are float32, others have the dtype of the currents."""
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


def in_steps(x: Tensor) -> Tensor:
    """Return `x` if its steps lie one after the other without gaps, else a contiguous copy.

    What a step looks like, for example channels first or last, does not matter to a neuron.
    """
    if x.is_contiguous():
        return x
    in_order = x.shape[0] == 1 or x.stride(0) == x[0].numel()
    if in_order and torch.empty_like(x, device="meta").stride() == x.stride():
        return x
    return x.contiguous()


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the tensor with the strides of another one, which has no gaps."""
    if tensor.stride() == other.stride():
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def check_currents(x: Tensor, v0: Tensor | None) -> None:
    """Raise `InputError` for currents or a start that a neuron cannot work with."""
    if _differentiated_by_functorch():
        raise InputError("torch.func.grad does not support custom ops: use torch.autograd.grad")
    if not x.is_floating_point():
        raise InputError(f"x is {x.dtype}: a neuron takes floating-point currents")
    if x.ndim == 0 or x.shape[0] == 0:
        raise InputError(f"x has shape {list(x.shape)}: expected [T, ...] with T >= 1 time steps")
    if v0 is not None and (v0.shape != x.shape[1:] or v0.dtype != membrane_dtype(x)):
        raise InputError(
            f"v0 is {v0.dtype} {list(v0.shape)}: expected {membrane_dtype(x)} "
            f"{list(x.shape[1:])}, one step of x without time"
        )


def _differentiated_by_functorch() -> bool:
    """Whether `torch.func.grad`, `jvp` or their kin are at work around this call."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    return any(
        level.key() in (TransformType.Grad, TransformType.Jvp)
        for level in retrieve_all_functorch_interpreters()
    )
