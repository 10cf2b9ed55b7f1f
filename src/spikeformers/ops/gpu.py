"""Kernels for GPUs, written in Triton: when they serve, and how they are launched."""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from spikeformers.ops.native import VARIABLE, Unsupported, or_else

P = ParamSpec("P")
R = TypeVar("R")


def on_gpu(function: Callable[P, R], module: str) -> Callable[P, R]:
    """Return the Triton kernel of the function's name, imported when a GPU first needs it.

    Args:
        function: Does the same without Triton, and serves where the kernel cannot.
        module: Where the kernel stands.
    """

    @or_else(function)
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if (why := why_not(args[0])) is not None:
            raise Unsupported(why)
        kernel: Callable[P, R] = getattr(importlib.import_module(module), function.__name__)
        return kernel(*args, **kwargs)

    return run


def why_not(tensor: Tensor) -> str | None:
    """Say why Triton cannot work on this tensor, if so."""
    if os.environ.get(VARIABLE) == "off":
        return f"{VARIABLE}=off"
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton: pip install 'spikeformers[gpu]'"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return f"{torch.cuda.get_device_name(tensor.device)} is too old for Triton"
    return None


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a Triton kernel on the device of its first argument.

    Products and sums are not fused, so that they round as PyTorch's do.
    """
    if all(programs):  # a kernel cannot be launched with no program
        with torch.cuda.device_of(arguments[0]):
            kernel[programs](*arguments, **constants, enable_fp_fusion=False)
