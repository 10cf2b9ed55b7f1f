"""One run, one page: a single HTML file without scripts or requests, for screen, phone and paper.

Every section is a function `Run -> Markup` below; `_SECTIONS` is their order on the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spikeformers.report import plots, samples, tables
from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.plots import HELD_OUT, TRAIN, Curve
from spikeformers.report.run import Run, read_run

_UNINSPECTED = (
    "This run was not inspected: inspect.json and inspect.npz are missing. "
    "`spikeformers report RUN` writes them."
)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the files in it and nothing else.

    The same files give the same bytes.

    Args:
        folder: Holds `log.jsonl` and `metrics.json`, and after inspection `inspect.json` and
            `inspect.npz`.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder or a needed file is missing or damaged.
        MissingExtraError: matplotlib is not installed.
    """
    folder = Path(folder)
    page = _page(read_run(folder))
    path = folder / "report.html"
    # Renamed over the old page, so that a browser never loads half a page.
    draft = folder / f".report.html.{os.getpid()}"
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _page(run: Run) -> str:
    name = run.metrics.get("model") or run.start.get("model") or "unnamed model"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        # An empty icon keeps browsers from asking a server for one.
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{name} · run report"),
        tag("style", Markup(style)),
    )
    links = (tag("a", title, href=f"#{_anchor(title)}") for title, _ in _SECTIONS)
    sections = (
        tag("section", tag("h2", title), write(run), id=_anchor(title))
        for title, write in _SECTIONS
    )
    body = tag("body", _header(run, name), tag("nav", *links), tag("main", *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _header(run: Run, name: str) -> Markup:
    metrics, environment = run.metrics, run.start.get("environment") or {}
    said = [
        (metrics.get("epochs"), "{} epochs"),
        (environment.get("device"), "on {}"),
        (metrics.get("images"), "tested on {} images"),
        (metrics.get("best_epoch"), "best epoch {}"),
        (metrics.get("top1_last"), "last epoch {:.1f} %"),
    ]
    line = " · ".join(text.format(value) for value, text in said if value is not None)
    numbers = [
        ("top-1 accuracy", tables.percent(metrics.get("top1"))),
        ("parameters", tables.count(metrics.get("parameters") or run.start.get("parameters"))),
        ("mean firing rate", tables.percent(_mean_rate(run))),
        ("training time", tables.duration(metrics.get("seconds"))),
    ]
    tiles = (tag("div", tag("dt", label), tag("dd", value)) for label, value in numbers)
    return tag(
        "header",
        tag("p", "spiking vision transformer · run report", class_="kicker"),
        tag("h1", name),
        tag("p", line),
        tag("dl", *tiles, class_="tiles"),
    )


def _mean_rate(run: Run) -> float | None:
    """Spikes / (neurons * T) over the whole network, in percent."""
    layers = run.inspection["layers"] if run.inspection else []
    neurons = sum(layer["neurons"] for layer in layers)
    if not neurons:
        return None
    spikes_per_step = sum(layer["rate"] * layer["neurons"] for layer in layers)
    return float(100 * spikes_per_step / neurons)


def _training(run: Run) -> Markup:
    if not run.epochs:
        return _note("The log holds no finished epoch.")

    def curve(label: str, key: str, colour: str = TRAIN) -> Curve:
        return Curve(
            label,
            [fact["epoch"] for fact in run.epochs],
            [fact.get(key) for fact in run.epochs],
            colour,
        )

    top1 = [curve("training", "train_top1"), curve("held-out", "top1", HELD_OUT)]
    drawings = [
        ("Loss", [curve("training", "loss")], "loss"),
        ("Top-1 accuracy", top1, "%"),
        ("Learning rate", [curve("learning rate", "learning_rate")], "learning rate"),
    ]
    figures = [
        _figure(title, plots.curves(f"{title} by epoch", lines, x="epoch", y=unit))
        for title, lines, unit in drawings
    ]
    note = _note(f"Lines of the log that were cut off and left out: {run.unreadable}.")
    return join(tag("div", *figures, class_="figures"), note if run.unreadable else "")


def _anytime(run: Run) -> Markup:
    top1 = run.metrics.get("top1_per_step")
    if not top1:
        return _note("metrics.json holds no accuracy per time step (top1_per_step).")
    line = Curve("top-1", range(1, len(top1) + 1), top1, HELD_OUT)
    drawing = plots.curves(
        "top-1 accuracy by time step", [line], x="time steps read out", y="top-1, %", numbered=True
    )
    text = "One forward pass, read out early: the answer after the first t of T time steps."
    beside = tag("div", _figure(None, drawing), tables.steps(top1), class_="beside")
    return join(_note(text), beside)


def _firing(run: Run) -> Markup:
    if not run.inspection:
        return _note(_UNINSPECTED)
    layers = run.inspection["layers"]
    silent = sum(layer["rate"] == 0 for layer in layers)
    text = (
        "Spikes / (neurons · time steps), on the inspected batch. Bars are scaled to the busiest "
        f"layer and coloured by depth. {silent or 'No'} of {len(layers)} layers silent."
    )
    return join(_note(text), tables.firing(layers))


def _rasters(run: Run) -> Markup:
    if not run.inspection:
        return _note(_UNINSPECTED)
    figures = [
        _figure(
            drawn["layer"], plots.raster(f"spikes of {drawn['layer']}", run.arrays[drawn["array"]])
        )
        for drawn in run.inspection["rasters"]
    ]
    text = "The first sample seen by evenly spaced neurons of the first, middle and last layer."
    return join(_note(text), tag("div", *figures, class_="figures"))


def _samples(run: Run) -> Markup:
    if not run.inspection:
        return _note(_UNINSPECTED)
    shown = run.inspection["samples"]
    hits = sum(samples.right(sample) for sample in shown)
    text = (
        f"{hits} of {len(shown)} inspected samples are right. The first "
        f"{min(len(shown), samples.MOST)} are shown, unselected; their dots are filled where the "
        "answer was right after 1, 2, … time steps."
    )
    cards = samples.cards(shown, run.arrays["images"], run.inspection["classes"])
    return join(_note(text), cards)


def _confusion(run: Run) -> Markup:
    matrix = run.metrics.get("confusion")
    if not matrix:
        return _note("metrics.json holds no confusion matrix.")
    names: Sequence[str] = run.inspection["classes"] if run.inspection else []
    if len(names) != len(matrix):
        names = [str(k) for k in range(len(matrix))]
    table, list_ = tables.confusion(matrix, names), tables.mistakes(matrix, names)
    worst = tag("div", tag("h3", "Most often confused"), list_)
    return tag("div", table, worst, class_="beside")


def _configuration(run: Run) -> Markup:
    return _facts(run.start.get("recipe"), "The log names no recipe.")


def _environment(run: Run) -> Markup:
    return _facts(run.start.get("environment"), "The log names no environment.")


def _facts(values: dict[str, Any] | None, otherwise: str) -> Markup:
    return tables.facts(values) if values else _note(otherwise)


def _figure(title: str | None, drawing: Markup) -> Markup:
    return tag("figure", tag("figcaption", title) if title else "", drawing)


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


_SECTIONS: list[tuple[str, Callable[[Run], Markup]]] = [
    ("Training", _training),
    ("Anytime accuracy", _anytime),
    ("Firing rates", _firing),
    ("Spikes", _rasters),
    ("Predictions", _samples),
    ("Confusion", _confusion),
    ("Configuration", _configuration),
    ("Environment", _environment),
]
