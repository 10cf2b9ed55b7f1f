"""What the verbs `audit`, `energy` and `chip` left in a run's folder, as sections of its page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.run import Facts, Run
from spikeformers.report.tables import count, number, percent


def operations(run: Run) -> Markup:
    """Every multiplication and what it is, as the audit judged it."""
    if (facts := run.proofs.get("audit.json")) is None:
        return _missing("audit")
    rows = [
        (_path(row), row["op"], " x ".join(row["operands"]), row["verdict"], row["reason"])
        for row in facts["rows"]
    ]
    notes = [f"Unknown operator: {name}." for name in facts.get("unknown", [])]
    notes += [f"{note}." for note in facts.get("notes", [])]
    return join(
        _note(f"The folded network is {facts['verdict']}."),
        _table(("layer", "operator", "operands", "verdict", "reason"), rows),
        *map(_note, notes),
    )


def energy(run: Run) -> Markup:
    """Counted operations of each layer and step, and their price under each cost model."""
    if (facts := run.proofs.get("energy.json")) is None:
        return _missing("energy", " KEY=VALUE")
    prices: Facts = facts["prices"]
    layers: dict[str, list[Facts]] = {}
    for row in facts["rows"]:
        layers.setdefault(_path(row), []).append(row)
    rows = [
        (layer, *(_millijoules(parts, prices[model]) for model in prices), count(_additions(parts)))
        for layer, parts in layers.items()
        if any(picojoules.get(part["unit"]) for picojoules in prices.values() for part in parts)
    ]
    text = (
        f"Mean of {facts['samples']} samples. Counted, not estimated: an addition is a spike, or "
        "one unit of an integer, that reaches one output. A cost model leaves out what it has no "
        f"price for; {facts['cost']} leaves out: {', '.join(facts['unpriced']) or 'nothing'}."
    )
    total = [(model, number(mJ, ".4g", " mJ")) for model, mJ in facts["mJ"].items()]
    heads = ("layer", *(f"mJ, {model}" for model in prices), "additions")
    return join(
        _note(text),
        _table(("cost model", "per sample"), total),
        _note("By layer:"),
        _table(heads, rows),
        _note("By time step:"),
        _table(("step", "firing rate", "additions", f"mJ, {facts['cost']}"), _steps(facts)),
    )


def _steps(facts: Facts) -> Iterable[Sequence[str]]:
    def total(unit: str, t: int) -> float:
        return math.fsum(row["per_step"][t] for row in facts["rows"] if row["unit"] == unit)

    for t, mJ in enumerate(facts["steps"]):
        neurons = total("update", t)
        rate = 100 * total("spike", t) / neurons if neurons else None
        yield str(t + 1), percent(rate), count(total("AC", t)), number(mJ, ".3g")


def _additions(rows: Iterable[Facts]) -> float:
    return math.fsum(row["count"] for row in rows if row["unit"] == "AC")


def _millijoules(rows: Iterable[Facts], picojoules: Facts) -> str:
    mJ = math.fsum(row["count"] * picojoules.get(row["unit"], 0.0) for row in rows) * 1e-9
    return number(mJ, ".3g")


def chips(run: Run) -> Markup:
    """What each chip would have to do, and what of it it cannot."""
    found = [facts for name, facts in run.proofs.items() if name.startswith("chip")]
    return join(*map(_chip, found)) if found else _missing("chip check", " --chip NAME")


def _chip(facts: Facts) -> Markup:
    places: dict[tuple[str, str, str], list[str]] = {}
    for violation in facts["violations"]:
        places.setdefault(_said(violation), []).append(_path(violation))
    operations = [
        (
            _path(operation),
            operation["operator"],
            " x ".join(operation["operands"]),
            *(count(operation[key]) for key in ("fan_in", "connections", "weights")),
            count(operation["accumulator_bits"]),
            count(operation["neurons"]),
        )
        for operation in facts["operations"]
    ]
    heads = ("layer", "operator", "operands", "fan-in", "connections", "weights", "bits", "neurons")
    unchecked = ", ".join(facts["unchecked"])
    return join(
        tag("h3", facts["chip"]["title"]),
        _note(f"The folded network {facts['verdict']}."),
        _table(
            ("it has", "the chip has", "change", "where"),
            ((*said, ", ".join(paths)) for said, paths in places.items()),
        )
        if places
        else "",
        _note(f"Not checked, for no public source tells: {unchecked}.") if unchecked else "",
        _note("What it has to do for one sample in one step:"),
        _table(heads, operations),
    )


def _said(violation: Facts) -> tuple[str, str, str]:
    """What the model has, what the chip has instead, and what to change."""
    found, limit, change = (violation[key] for key in ("found", "limit", "change"))
    if limit == "operator":
        return str(found), "no such operator", change
    if isinstance(found, bool):
        return limit, "none", change
    return f"{limit} {found}", violation["allowed"], change


def _path(row: Facts) -> str:
    return str(row["path"] or "(model)")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    lines = [tag("tr", *(tag("th", head, scope="col") for head in heads))]
    for first, *rest in rows:
        lines.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)))
    return tag("div", tag("table", *lines, class_="proof"), class_="scroll")


def _missing(verb: str, more: str = "") -> Markup:
    name = verb.split()[0]
    return _note(
        f"The folder has no {name}.json: `spikeformers {verb} RUN/best.safetensors{more} --record "
        f"RUN/{name}.json` writes it."
    )


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")
