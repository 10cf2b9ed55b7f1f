"""Kernels for GPUs, written in Triton: when they serve, and how they are launched."""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from spikeformers.ops.native import VARIABLE, Unsupported, or_else

R = TypeVar("R")


def on_gpu(kernel: str, function: Callable[..., R]) -> Callable[..., R]:
    """Return a Triton kernel by its full name, imported when a GPU first needs it.

    Args:
        kernel: Module and function, as in `spikeformers.ops.lif.triton.lif_forward`.
        function: Does the same without Triton, and serves where the kernel cannot.
    """
    module, _, name = kernel.rpartition(".")

    @or_else(function)
    @functools.wraps(function)
    def run(*args: Any) -> R:
        if (why := why_not(args[0])) is not None:
            raise Unsupported(f"this GPU ({why})")
        found: Callable[..., R] = getattr(importlib.import_module(module), name)
        return found(*args)

    return run


def why_not(x: Any) -> str | None:
    """Say why Triton cannot work on a tensor, if so."""
    if os.environ.get(VARIABLE) == "off":
        return f"{VARIABLE}=off"
    if not has_triton():
        return "there is no Triton: pip install 'spikeformers[gpu]'"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return f"{torch.cuda.get_device_name(x.device)} is too old for Triton"
    return None


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def state() -> str:
    """Say what runs on the GPU of this machine, and why."""
    if not torch.cuda.is_available():
        return "none: there is no GPU"
    why = why_not(torch.empty(0, device="cuda"))
    return f"PyTorch: {why}" if why else f"Triton {importlib.metadata.version('triton')}"


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a Triton kernel on the device of its first argument.

    Products and sums are not fused, so that they round as PyTorch's do.
    """
    if all(programs):  # a kernel cannot be launched with no program
        with torch.cuda.device_of(arguments[0]):
            kernel[programs](*arguments, **constants, enable_fp_fusion=False)
