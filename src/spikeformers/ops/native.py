"""The native CPU kernels: which library is loaded, and why.

`csrc/` is compiled once per instruction level into `lib/<level>.so`, plain C functions on raw
pointers. The best level that this processor has is loaded; `SPIKEFORMERS_KERNELS`, read once at
import, names another one or says `off`. Without a library PyTorch does the work.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor

from spikeformers import ops
from spikeformers.errors import ConfigError

LEVELS = ("avx512", "avx2", "neon", "baseline")
"""Instruction levels, best first."""

VARIABLE = "SPIKEFORMERS_KERNELS"

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What the kernels compute with, in the order of `DType` in `csrc/number.h`."""

INT, SIZE, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p

log = logging.getLogger("spikeformers")

P = ParamSpec("P")
R = TypeVar("R")


class Library:
    """The kernels of one level.

    Args:
        level: One of `LEVELS`.

    Raises:
        OSError: If there is no such library, or this processor cannot run it.
    """

    def __init__(self, level: str) -> None:
        self.level = level
        self._functions = ctypes.CDLL(str(_file_of(level)))
        if not self._functions.runs_here():
            raise OSError(f"this processor lacks {level}")
        self._functions.use_pool(_torch_parallel_for())

    def function(self, name: str, argtypes: list[Any]) -> Callable[..., int] | None:
        """Return a function by its C name, if this library is new enough to have it."""
        try:
            function = self._functions[name]
        except AttributeError:
            return None
        function.argtypes, function.restype = argtypes, ctypes.c_int
        return function


def _file_of(level: str) -> Path:
    """Find a library: an editable installation has it in another folder than its sources."""
    folders = [Path(folder) for folder in ops.__path__]
    with suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("spikeformers").locate_file("spikeformers/ops"))))
    for folder in folders:
        file = folder / "lib" / f"{level}.so"
        if file.exists():
            return file
    raise OSError(f"{level} was not built")


@functools.cache
def _torch_parallel_for() -> ctypes.c_void_p | None:
    """Address of PyTorch's parallel loop, if this PyTorch exports it."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            return ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


def load(wish: str | None) -> tuple[Library | None, str]:
    """Load the level wished for, or the best one; say why it is this one, or why there is none."""
    if wish == "off":
        return None, f"{VARIABLE}=off"
    if wish is not None and wish not in LEVELS:
        raise ConfigError(f"{VARIABLE}={wish!r}: expected off or one of {', '.join(LEVELS)}")
    reasons = []
    for level in LEVELS if wish is None else (wish,):
        try:
            return Library(level), f"{VARIABLE}={wish}" if wish else "the best of this processor"
        except OSError as error:
            reasons.append(str(error))
    return None, "; ".join(reasons)


LIBRARY, WHY = load(os.environ.get(VARIABLE))


class Unsupported(Exception):
    """Names what a native kernel cannot do; something slower can."""


class Kernel:
    """A function of the native library; it returns nothing and fails only for lack of memory.

    Args:
        name: Its C name.
        argtypes: The ctypes of its arguments.
    """

    known: ClassVar[list["Kernel"]] = []

    def __init__(self, name: str, *argtypes: Any) -> None:
        self.name, self._argtypes = name, list(argtypes)
        self._function_of: dict[Library | None, Callable[..., int] | None] = {}
        Kernel.known.append(self)

    def __call__(self, *args: Any) -> None:
        """Run it; tensors are passed as their data pointers, the caller answers for their layout.

        Raises:
            Unsupported: If there is no such function.
            MemoryError: If it found no memory to work in.
        """
        if self.missing is not None:
            raise Unsupported(self.missing)
        function = self._function_of[LIBRARY]
        assert function is not None
        if function(*[arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]):
            raise MemoryError(f"no memory left for the native kernel {self.name}")

    @property
    def missing(self) -> str | None:
        """Why this kernel cannot be called, if so."""
        if LIBRARY is None:
            return f"anything ({WHY})"
        if LIBRARY not in self._function_of:
            self._function_of[LIBRARY] = LIBRARY.function(self.name, self._argtypes)
        if self._function_of[LIBRARY] is None:
            return f"{self.name} (newer than the installed library: install spikeformers again)"
        return None


def dtype_code(tensor: Tensor) -> int:
    """Return the number by which the kernels know the dtype of a tensor.

    Raises:
        Unsupported: If they do not know it, or the tensor is not in main memory.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise Unsupported(f"{tensor.dtype} on {tensor.device.type}")
    return DTYPES.index(tensor.dtype)


def or_else(fallback: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let `fallback` do what the decorated function raises `Unsupported` for, and log why, once."""

    def decorate(native: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(native)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return native(*args, **kwargs)
            except Unsupported as reason:
                _log_once(str(reason))
                return fallback(*args, **kwargs)

        return run

    return decorate


@functools.cache
def _log_once(reason: str) -> None:
    log.warning("no native kernel for %s: PyTorch does it", reason)


def level() -> str | None:
    """Return the level of the library in use, if there is one."""
    return None if LIBRARY is None else LIBRARY.level


def kernels() -> dict[str, str]:
    """Return the level at which each kernel runs; `PyTorch` where there is none."""
    return {k.name: "PyTorch" if k.missing else level() or "PyTorch" for k in Kernel.known}
