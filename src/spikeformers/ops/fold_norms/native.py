"""What is fast on a CPU: `csrc/fold_norms.cpp`, one call each way."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from spikeformers.ops.fold_norms import reference
from spikeformers.ops.fold_norms.reference import Folded, Moments, Norm
from spikeformers.ops.native import INT, POINTER, SIZE, Kernel, Unsupported, dtype_code, or_else

_forward = Kernel("fold_norms_forward", INT, SIZE, SIZE, *[POINTER] * 6)
_backward = Kernel("fold_norms_backward", INT, SIZE, SIZE, *[POINTER] * 7)


class _Norm(ctypes.Structure):
    """`Norm` in `csrc/norms.h`."""

    _fields_ = (
        *((name, POINTER) for name in ("weight", "bias", "running_mean", "running_var")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
        ("training", SIZE),
    )


class _Moments(ctypes.Structure):
    """`Moments` in `csrc/norms.h`."""

    _fields_ = (("mean", POINTER), ("var", POINTER), ("total", ctypes.c_double))


@or_else(reference.fold_norms)
def fold_norms(norms: Sequence[Norm], bias: Tensor | None, moments: Moments | None) -> Folded:
    """See `reference.fold_norms`."""
    weight = norms[0].weight
    if weight.is_cuda:
        return reference.fold_norms(norms, bias, moments)
    _check(weight, bias, *(moments[:2] if moments else ()), *(v for n in norms for v in n[:4]))
    tape = weight.new_empty((len(norms), 4, weight.shape[0]), dtype=torch.float64)
    gain, offset = torch.empty_like(weight), torch.empty_like(weight)
    rows = _array(len(norms))(*[_Norm(*(v.data_ptr() for v in n[:4]), *n[4:]) for n in norms])
    _forward(*_sizes(tape, gain), rows, bias, _moments(moments), gain, offset, tape)
    increment_version([v for n in norms if n.training for v in (n.running_mean, n.running_var)])
    return Folded(gain, offset, tape)


@or_else(reference.fold_norms_backward)
def fold_norms_backward(
    grad_gain: Tensor,
    grad_offset: Tensor,
    training: Sequence[bool],
    moments: Moments | None,
    tape: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `reference.fold_norms_backward`."""
    if grad_gain.is_cuda:
        return reference.fold_norms_backward(grad_gain, grad_offset, training, moments, tape)
    _check(grad_gain, grad_offset, *(moments[:2] if moments else ()))
    channels = grad_gain.shape[0]
    grads = grad_gain.new_empty((2 * len(training) + 1, channels))
    through = grad_gain.new_empty((2, channels))
    given = grad_gain, grad_offset, bytes(training), _moments(moments), tape
    _backward(*_sizes(tape, grad_gain), *given, grads, through)
    return grads, through


@functools.cache
def _array(length: int) -> Any:
    return _Norm * length


def _check(like: Tensor, *vectors: Tensor | None) -> None:
    if like.dtype.itemsize == 2:
        raise Unsupported(f"norms in {like.dtype}")
    for vector in (like, *vectors):
        if vector is not None and (vector.dtype != like.dtype or not vector.is_contiguous()):
            raise Unsupported("norms of several dtypes, or with gaps in memory")


def _sizes(tape: Tensor, vector: Tensor) -> tuple[int, int, int]:
    return dtype_code(vector), tape.shape[0], tape.shape[2]


def _moments(moments: Moments | None) -> Any:
    if moments is None:
        return None
    return ctypes.byref(_Moments(moments.mean.data_ptr(), moments.var.data_ptr(), moments.total))
