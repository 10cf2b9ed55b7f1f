"""How things are measured: in turn, in fresh processes, by what autograd and the system count."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

Facts = dict[str, Any]
"""What a measurement says about a row: the fields that not all rows of its process share."""


def fresh(function: Callable[..., Any], *args: Any, **environment: str) -> Any:
    """Call a function in a new Python process, and return what it returns.

    Args:
        function: Defined in a module, so that the other process finds it.
        args: Its arguments.
        environment: Variables that the process has beside those of this one.

    Raises:
        BrokenProcessPool: If the process dies, for example for want of memory.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """Return the median seconds of each call.

    In every round each one runs once, so that whatever else the machine does meets all alike; the
    first rounds do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[warm_up:]) for name, times in seconds.items()}


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return how many bytes autograd keeps for the backward pass, beside the model itself.

    Every storage counts once and in full, however many views of it are saved.
    """
    held = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()  # Alive until the count is done: else storages could share an address.
    del output
    return sum(saved.values())
