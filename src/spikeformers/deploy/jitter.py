"""How much of a clocked network survives without its clock: agreement against jitter.

This tests the claim of the STMixer paper instead of repeating it: the same images run through the
network with longer and longer delays, once with neurons that fire at once and once with neurons
that wait for a step, which tells operations that need the clock from neurons that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from spikeformers.deploy._async_network import AsyncNetwork
from spikeformers.deploy.arrival_order import OrderRow, arrival_order
from spikeformers.deploy.async_sim import run_async, run_waiting
from spikeformers.errors import InputError

__all__ = ["JitterReport", "JitterRow", "jitter_study"]


_HEADS = ("neurons", "jitter", "same answer", "shared spikes", "spikes", "top-1")


@dataclass(frozen=True)
class JitterRow:
    """What is left under one jitter.

    Attributes:
        neurons: "fire at once" or "wait", see `run_async` and `run_waiting`.
        jitter: Longest delay, in steps.
        agreement: Share of samples with the answer of the clocked run.
        shared_spikes: Share of the spikes of both runs that they have in common.
        spikes: How many there are, as a multiple of the clocked run's.
        top1: Accuracy in percent; `None` without labels.
    """

    neurons: str
    jitter: float
    agreement: float
    shared_spikes: float
    spikes: float
    top1: float | None


@dataclass(frozen=True)
class JitterReport:
    """What a study found.

    Attributes:
        rows: One per jitter, first of neurons that fire at once, then of those that wait.
        operations: Which ones care about the order of arrival.
        samples: How many ran.
        timesteps: Steps T of the clocked network.
        ticks: Instants per step.
        seed: Of the delays.
    """

    rows: tuple[JitterRow, ...]
    operations: tuple[OrderRow, ...]
    samples: int
    timesteps: int
    ticks: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        """Write the operations that care, and a line for each jitter."""
        lines = [
            f"order matters: {row.path or '(model)'} ({row.op}), {row.changed:.1%} of its outputs"
            for row in self.operations
            if not row.is_independent
        ]
        free = sum(row.is_independent for row in self.operations)
        lines += [f"order does not matter: {free} of {len(self.operations)} operations"]
        line = "{:12}  {:>6}  {:>11}  {:>13}  {:>6}  {:>7}"
        lines += [line.format(*_HEADS)]
        for row in self.rows:
            shares = (f"{row.agreement:.1%}", f"{row.shared_spikes:.1%}", f"{row.spikes:.2f}x")
            top1 = "" if row.top1 is None else f"{row.top1:.1f} %"
            lines.append(line.format(row.neurons, f"{row.jitter:.3f}", *shares, top1))
        return "\n".join(lines)


def jitter_study(
    model: nn.Module,
    x: Tensor,
    jitters: Sequence[float],
    labels: Tensor | None = None,
    *,
    ticks: int = 16,
    seed: int = 0,
) -> JitterReport:
    """Compare asynchronous runs of a batch with the clocked one.

    Args:
        model: A classifier with IF and LIF neurons, in any mode; its `readout` gives the answers,
            without one the mean over time.
        x: Encoded batch `[T, B, C, H, W]`.
        jitters: Longest delays of a spike, in steps.
        labels: Right answers `[B]`, if they are known.
        ticks: Instants that a step is divided into.
        seed: Of the delays.

    Raises:
        InputError: If there is no jitter, one is negative, or the model has no asynchronous form.
    """
    if not jitters:
        raise InputError("jitters is empty: expected at least one delay in steps")
    network = AsyncNetwork(model, x, ticks)
    readout = getattr(model, "readout", lambda y: y.mean(0))
    clocked = run_async(network, x)
    answers = readout(clocked.logits).argmax(-1)
    rows = []
    for neurons, run in (("fire at once", run_async), ("wait", run_waiting)):
        for jitter in jitters:
            late = run(network, x, jitter, seed)
            given = readout(late.logits).argmax(-1)
            row = JitterRow(
                neurons=neurons,
                jitter=jitter,
                agreement=_share(given == answers),
                shared_spikes=late.shared_spikes(clocked),
                spikes=late.total / clocked.total if clocked.total else 1.0,
                top1=None if labels is None else 100 * _share(given == labels),
            )
            rows.append(row)
    operations = arrival_order(network, x, seed)
    return JitterReport(tuple(rows), operations, x.shape[1], len(x), ticks, seed)


def _share(is_so: Tensor) -> float:
    return float(is_so.double().mean())
