"""What an inference costs: `energy(model, batches)` counts every operation and prices it.

`counting.py` says what is counted, and how: the rows of the audit while the same folded graph runs
on data, and beside them what multiplies nothing. `costs.toml` says what each cost model asks for a
unit; what it does not price is listed.

Reference:
    Horowitz, "Computing's energy problem", ISSCC 2014.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeformers.analysis.counting import Counter, Key
from spikeformers.errors import ConfigError, InputError

__all__ = ["EnergyReport", "EnergyRow", "cost_models", "energy", "price"]

BREAK_EVEN = (0.057, 0.064)
"""Mean rates below which a spiking network wins over its quantised twin, arXiv:2409.08290."""


@cache
def cost_models() -> dict[str, Any]:
    """Return the cost models by name: title, source, assumptions, and parts of pJ per unit."""
    return tomllib.loads((resources.files(__package__) / "costs.toml").read_text("utf-8"))


def price(counts: Mapping[str, float], cost: str = "paper") -> float:
    """Return what operations cost, in mJ; a unit without a price there costs nothing.

    Args:
        counts: Unit -> how many.
        cost: A name that `cost_models` lists.

    Raises:
        ConfigError: If there is no such cost model.
    """
    return math.fsum(n * _picojoules(unit, cost) for unit, n in counts.items()) * 1e-9


def _picojoules(unit: str, cost: str) -> float:
    if cost not in cost_models():
        known = ", ".join(cost_models())
        raise ConfigError(f"cost={cost!r} is no cost model: expected one of {known}")
    return math.fsum(cost_models()[cost].get(unit, {}).values())


@dataclass(frozen=True)
class EnergyRow:
    """How often one operation of the graph was performed, as a mean over samples.

    Attributes:
        path: Module path in the model's own names.
        op: The operator's name.
        verdict: The audit's, or "sum", "neuron", "shortcut", "pool" for what it does not judge.
        unit: What is counted.
        count: How many per sample.
        spread: Standard deviation of that over the samples.
        per_step: How many per sample in each time step; what runs once stands in the first.
        mJ: What they cost under the report's cost model.
    """

    path: str
    op: str
    verdict: str
    unit: str
    count: float
    spread: float
    per_step: tuple[float, ...]
    mJ: float


@dataclass(frozen=True)
class EnergyReport:
    """What a model did on a set of samples.

    Attributes:
        rows: The operations in the order in which they run; one may have two units.
        samples: Over how many the rows are means.
        timesteps: Steps of the input.
        levels: Largest integer that a neuron emits.
        cost: The cost model's name.
        mJ_spread: Standard deviation of the energy over samples.
        twin_MAC: Multiply-accumulates per sample of the quantised twin: the same layers, dense, run
            once on activations of `twin_bits`.
        uncounted: Operations that could not be counted, and why.
        options: `first_layer` and `integers` as given.
    """

    rows: tuple[EnergyRow, ...]
    samples: int
    timesteps: int
    levels: int
    cost: str
    mJ_spread: float
    twin_MAC: float
    uncounted: tuple[str, ...]
    options: Mapping[str, str]

    @cached_property
    def counts(self) -> dict[str, float]:
        """Unit -> how many per sample in the whole network."""
        units = dict.fromkeys(row.unit for row in self.rows)
        return {u: math.fsum(row.count for row in self.rows if row.unit == u) for u in units}

    @property
    def total(self) -> dict[str, float]:
        """Additions, multiplications and mJ per sample."""
        counted = {unit: self.counts.get(unit, 0.0) for unit in ("AC", "MAC", "MACint")}
        return {**counted, "mJ": price(self.counts, self.cost)}

    @property
    def rate(self) -> float | None:
        """Spikes / (neurons * T); `None` without neurons."""
        updates = self.counts.get("update", 0.0)
        return self.counts["spike"] / updates if updates else None

    @property
    def twin_bits(self) -> int:
        """Bits of an activation that tells apart what the spikes of all steps can sum up to."""
        return math.ceil(math.log2(self.timesteps * self.levels + 1))

    @property
    def unpriced(self) -> dict[str, float]:
        """Unit -> how many per sample, for what the cost model has no price for."""
        return {u: n for u, n in self.counts.items() if n and not _picojoules(u, self.cost)}

    @property
    def stages(self) -> dict[str, float]:
        """Stage or head -> mJ per sample: `stages.0`, `head` and the like."""
        costs: dict[str, float] = {}
        for row in self.rows:
            name, _, rest = row.path.partition(".")
            number = rest.partition(".")[0]
            stage = f"{name}.{number}" if number.isdigit() else name
            costs[stage] = costs.get(stage, 0.0) + row.mJ
        return costs

    @property
    def steps(self) -> list[float]:
        """Return mJ per sample in each time step."""
        costs = [[n * _picojoules(row.unit, self.cost) for n in row.per_step] for row in self.rows]
        return [math.fsum(step) * 1e-9 for step in zip(*costs, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, with all cost models; their prices are in pJ."""
        return {
            "total": self.total,
            "mJ": {name: price(self.counts, name) for name in cost_models()},
            "prices": {
                name: {unit: _picojoules(unit, name) for unit in self.counts}
                for name in cost_models()
            },
            "stages": self.stages,
            "steps": self.steps,
            "rate": self.rate,
            "twin_bits": self.twin_bits,
            "unpriced": self.unpriced,
            **asdict(self),
        }

    def __str__(self) -> str:
        """Write the priced rows, the cost models side by side, and every assumption."""
        mJ, model = self.total["mJ"], cost_models()[self.cost]
        lines = [f"{'path':40}  {'op':10}  {'verdict':8}  {'count':>16}  unit    {'mJ':>10}"]
        lines += [
            f"{row.path or '(model)':40}  {row.op:10}  {row.verdict:8}  {row.count:16,.1f}  "
            f"{row.unit:6}  {row.mJ:10.3g}"
            for row in self.rows
            if _picojoules(row.unit, self.cost)
        ]
        first = math.fsum(row.mJ for row in self.rows if row.verdict == "encode")
        lines += [
            f"{self.samples} samples, T={self.timesteps}: "
            + ", ".join(f"{self.total[unit]:,.0f} {unit}" for unit in ("AC", "MAC", "MACint"))
            + f"; {mJ:.4g} mJ (spread {self.mJ_spread:.2g})",
            f"first layer: {first / mJ if mJ else 0:.1%} of the energy",
        ]
        lines += [f"{name or '(model)'}: {cost:.4g} mJ" for name, cost in self.stages.items()]
        lines += ["by step: " + ", ".join(f"{cost:.4g}" for cost in self.steps) + " mJ"]
        if self.rate is not None:
            low, high = BREAK_EVEN
            lines += [
                f"mean firing rate {self.rate:.1%}; a quantised twin of {self.twin_bits} bits "
                f"costs less above {low:.1%} to {high:.1%} (arXiv:2409.08290, T of 5 to 10)"
            ]
        for name in cost_models():
            twin = price({"MAC": self.twin_MAC}, name)
            lines.append(f"under {name}: {price(self.counts, name):.4g} mJ, the twin {twin:.4g} mJ")
        lines += [f"assumed: {model['title']} ({model['source']})"]
        lines += [f"assumed: {text}" for text in model["assumptions"]]
        lines += [f"assumed: {key}={value}" for key, value in self.options.items()]
        lines += [f"not priced: {count:,.0f} x {unit}" for unit, count in self.unpriced.items()]
        return "\n".join([*lines, *(f"not counted: {text}" for text in self.uncounted)])


@torch.no_grad()
def energy(
    model: nn.Module,
    batches: Tensor | Iterable[Tensor],
    cost: str = "paper",
    *,
    first_layer: Literal["once", "per_step"] = "once",
    integers: Literal["additions", "mac"] = "additions",
) -> EnergyReport:
    """Count what a model does on data, and price it.

    The model itself is left alone: a folded eval copy runs. Sums are kept per operation and step,
    so that a data set of any length fits.

    Args:
        model: Any module that takes one tensor; in any mode.
        batches: A batch `[T, B, C, H, W]`, or several with the same `T`.
        cost: "paper", "int8", "lemaire" or "memory"; the counts do not depend on it.
        first_layer: "once": where all steps of a batch are the same image, what is affine in it is
            computed in the first; "per_step": in each.
        integers: What an integer costs that meets weights: as many additions as its value, or
            "mac": the operation is one of multiplications, as Spikingformer's counter reads it.

    Raises:
        ConfigError: If an option is unknown.
        InputError: If there is no batch, or one is no tensor or of another number of steps.
    """
    _picojoules("AC", cost)
    for name, value, known in (
        ("first_layer", first_layer, ("once", "per_step")),
        ("integers", integers, ("additions", "mac")),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r}: expected {known[0]!r} or {known[1]!r}")
    counters: dict[torch.Size, Counter] = {}
    tally = _Tally(cost)
    for x in [batches] if isinstance(batches, Tensor) else batches:
        if not isinstance(x, Tensor) or x.ndim < 3 or not x.shape[1]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"batches hold {got}: expected tensors [T, B, C, H, W]")
        if x.shape not in counters:
            counters[x.shape] = Counter(model, x, integers)
        is_once = first_layer == "once" and bool((x == x[:1]).all())
        tally.add(counters[x.shape].count(x, is_once), *x.shape[:2])
    if not counters:
        raise InputError("batches is empty: nothing to count")
    options = {"first_layer": first_layer, "integers": integers}
    return tally.report(next(iter(counters.values())), options)


class _Tally:
    """Sums over samples, per row and step."""

    def __init__(self, cost: str) -> None:
        self.cost = cost
        self.per_step: dict[Key, Tensor] = {}
        self.moments = _Moments()
        self.row_moments: dict[Key, _Moments] = {}

    def add(self, counts: dict[Key, Tensor], timesteps: int, samples: int) -> None:
        """Add what each sample of a batch did: row -> `[T, B]`."""
        if any(len(steps) != timesteps for steps in self.per_step.values()):
            raise InputError(f"a batch has T={timesteps}: expected the same number in all batches")
        millijoules = torch.zeros(samples, dtype=torch.float64)
        for key, n_TB in counts.items():
            self.per_step[key] = self.per_step.get(key, 0) + n_TB.sum(1)
            self.row_moments.setdefault(key, _Moments()).add(n_TB.sum(0))
            millijoules += n_TB.sum(0) * _picojoules(key[-1], self.cost) * 1e-9
        self.moments.add(millijoules)

    def report(self, counter: Counter, options: Mapping[str, str]) -> EnergyReport:
        rows = []
        for key, steps in self.per_step.items():
            path, op, verdict, _, unit = key
            moments = self.row_moments[key]
            mJ = price({unit: moments.mean}, self.cost)
            per_step = tuple((steps / moments.samples).tolist())
            row = (path, op, verdict, unit, moments.mean, moments.spread, per_step, mJ)
            rows.append(EnergyRow(*row))
        timesteps = len(rows[0].per_step) if rows else 0
        return EnergyReport(
            rows=tuple(rows),
            samples=self.moments.samples,
            timesteps=timesteps,
            levels=counter.levels,
            cost=self.cost,
            mJ_spread=self.moments.spread,
            twin_MAC=counter.twin(),
            uncounted=counter.uncounted,
            options=options,
        )


@dataclass
class _Moments:
    """Mean and standard deviation of numbers that come in parts, without their cancellation."""

    samples: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> None:
        n = values.numel()
        mean, squares = values.mean().item(), values.var(correction=0).item() * n
        shift, self.samples = mean - self.mean, self.samples + n
        self.mean += shift * n / self.samples
        self.squares += squares + shift * shift * n * (self.samples - n) / self.samples

    @property
    def spread(self) -> float:
        return math.sqrt(self.squares / self.samples)
