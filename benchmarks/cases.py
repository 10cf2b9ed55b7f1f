"""The registry: what is measured, on what, under which settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.measure import Facts, fresh
from benchmarks.neurons import Neurons, lif_forward, lif_forward_backward
from benchmarks.results import Row
from benchmarks.sides import Network
from benchmarks.training import peak_rss, saved_activations, train_step
from spikeformers.ops import native
from spikeformers.train.log import environment

ALLOCATORS = {
    "default": "",
    # Large tensors stay in the heap instead of being mapped and zeroed anew each time.
    "raised-thresholds": "glibc.malloc.mmap_threshold=1099511627776:"
    "glibc.malloc.trim_threshold=1099511627776",
}
"""Settings of the C library's allocator: name -> `GLIBC_TUNABLES`."""


@dataclass(frozen=True)
class Job:
    """One measurement, made in a fresh process for each allocator setting.

    Attributes:
        case: Its name in the results.
        measure: Takes subject and peer and returns the rows.
        peer: With whom we compare.
        subject: What it is measured on.
        allocators: Settings of the C library's allocator.
        is_short: Whether it belongs to the short version.
    """

    case: str
    measure: Callable[[Any, str], list[Facts]]
    peer: str
    subject: Network | Neurons
    allocators: tuple[str, ...] = tuple(ALLOCATORS)
    is_short: bool = True


_EAGER, _BF16 = "spikingjelly-eager", "spikingjelly-bf16"
_COMPILED, _MEMOPT = "spikingjelly-compiled", "spikingjelly-memopt"
_STEP, _SAVED, _PEAK = "train-step", "saved-activations", "peak-rss"
_FORWARD, _BACKWARD = "lif-forward", "lif-forward-backward"

_PUBLISHED = Network()
_HALF = Network(dtype="bfloat16")
_LIVELY = Network(v_threshold=0.6)
_SMALL, _LARGE = Network(batch=2), Network(batch=8)
_SMALL_HALF = Network(batch=2, dtype="bfloat16")
_LARGE_HALF = Network(batch=8, dtype="bfloat16")
_NEURONS, _HALF_NEURONS = Neurons(), Neurons(dtype="bfloat16")

JOBS = (
    Job(_STEP, train_step, _EAGER, _PUBLISHED),
    Job(_STEP, train_step, _BF16, _HALF),
    Job(_STEP, train_step, _EAGER, _LIVELY, ("raised-thresholds",)),
    # One block per stage: to compile the published size takes minutes.
    Job(_STEP, train_step, _COMPILED, Network(depths=(1, 1, 1, 1, 1)), ("raised-thresholds",)),
    # Bytes that autograd keeps do not depend on who allocates them.
    Job(_SAVED, saved_activations, _EAGER, _PUBLISHED, ("default",)),
    Job(_SAVED, saved_activations, _BF16, _HALF, ("default",)),
    Job(_SAVED, saved_activations, _MEMOPT, _PUBLISHED, ("default",)),
    Job(_PEAK, peak_rss, _EAGER, _PUBLISHED),
    Job(_FORWARD, lif_forward, _EAGER, _NEURONS),
    Job(_FORWARD, lif_forward, _BF16, _HALF_NEURONS),
    Job(_BACKWARD, lif_forward_backward, _EAGER, _NEURONS),
    Job(_BACKWARD, lif_forward_backward, _BF16, _HALF_NEURONS),
    Job(_STEP, train_step, _EAGER, _SMALL, is_short=False),
    Job(_STEP, train_step, _BF16, _SMALL_HALF, is_short=False),
    Job(_STEP, train_step, _EAGER, _LARGE, is_short=False),
    Job(_STEP, train_step, _BF16, _LARGE_HALF, is_short=False),
    Job(_STEP, train_step, _BF16, Network(v_threshold=0.6, dtype="bfloat16"), is_short=False),
    Job(_STEP, train_step, _COMPILED, _PUBLISHED, is_short=False),
    Job(_STEP, train_step, _COMPILED, _HALF, is_short=False),
    Job(_STEP, train_step, _MEMOPT, _PUBLISHED, is_short=False),
    Job(_PEAK, peak_rss, _BF16, _HALF, is_short=False),
    Job(_PEAK, peak_rss, _EAGER, _LARGE, is_short=False),
    Job(_PEAK, peak_rss, _BF16, _LARGE_HALF, is_short=False),
    Job(_PEAK, peak_rss, _MEMOPT, _LARGE, is_short=False),
)


def run(job: Job, threads: int) -> Iterator[Row]:
    """Make one measurement under each of its allocator settings.

    Raises:
        BrokenProcessPool: If a process dies, for example for want of memory.
    """
    for allocator in job.allocators:
        facts, shared = fresh(measured, job, **variables(allocator, threads))
        for fact in facts:
            yield Row.of(case=job.case, allocator=allocator, threads=threads, **fact, **shared)


def variables(allocator: str, threads: int) -> dict[str, str]:
    """Return the environment of a process that measures."""
    return dict(GLIBC_TUNABLES=ALLOCATORS[allocator], OMP_NUM_THREADS=str(threads))


def measured(job: Job) -> tuple[list[Facts], dict[str, Any]]:
    """Return the rows of a measurement, and what they share: kernels and environment."""
    isa = native.LIBRARY.level if native.LIBRARY else "none"
    versions = dict(environment(torch.device("cpu")), spikingjelly=version("spikingjelly"))
    return job.measure(job.subject, job.peer), dict(isa=isa, environment=versions)
