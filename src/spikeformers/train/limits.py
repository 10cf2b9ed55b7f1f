"""What a machine can hold: errors that say what to lower, instead of a crash or a crawl."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spikeformers.errors import ConfigError, TrainingError
from spikeformers.train.recipe import TrainSection


def check_threads(device: torch.device) -> None:
    """Refuse more computing threads than the processes of this job have cores.

    Threads that wait for a core slow the others down by an order of magnitude.

    Raises:
        ConfigError: If there are more.
    """
    processes, threads = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device.type == "cpu" and cores and processes * threads > cores:
        raise ConfigError(
            f"OMP_NUM_THREADS: {processes} processes of {threads} threads each want more than the "
            f"{cores} cores here: expected {max(1, cores // processes)} threads or fewer"
        )


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free, for the next ones, until the process ends.

    GNU's hands large blocks back at once, and filling fresh pages takes longer than many kernels.
    Other C libraries have no such function, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
            mallopt(parameter, value)


# Of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


@contextmanager
def within_memory(settings: TrainSection) -> Iterator[None]:
    """Turn the allocators' errors into one that says what needs less.

    Raises:
        TrainingError: If the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no class of its own for the memory of the CPU.
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_full and "DefaultCPUAllocator" not in str(error):
            raise
        share = settings.batch_size // settings.accumulate
        less = "" if settings.accelerate == "low" else ", or train.accelerate=low, which keeps less"
        raise TrainingError(
            f"out of memory with {share} images at once: raise train.accumulate="
            f"{settings.accumulate} or lower train.batch_size={settings.batch_size}{less}"
        ) from error
