"""One run, one page: a single HTML file without scripts or requests, for screen, phone and paper.

The header is written here, what stands below it in `sections.py`.
"""

from __future__ import annotations

from pathlib import Path

from spikeformers.report import samples, tables
from spikeformers.report.document import document, write_page
from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.run import Run, read_run
from spikeformers.report.sections import SECTIONS


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
    return write_page(folder / "report.html", _page(read_run(folder)))


def _page(run: Run) -> str:
    name = run.metrics.get("model") or run.start.get("model") or "unnamed model"
    links = (tag("a", title, href=f"#{_anchor(title)}") for title, _ in SECTIONS)
    sections = (
        tag("section", tag("h2", title), write(run), id=_anchor(title)) for title, write in SECTIONS
    )
    header, nav, main = _header(run, name), tag("nav", *links), tag("main", *sections)
    return document(f"{name} · run report", header, nav, main)


def _header(run: Run, name: str) -> Markup:
    metrics, environment = run.metrics, run.start.get("environment") or {}
    said = [
        (metrics.get("epochs"), "{} epochs"),
        (environment.get("device"), "on {}"),
        (metrics.get("ranks"), "{} ranks"),
        (metrics.get("images_per_second"), "{:.0f} images/s"),
        (metrics.get("images"), "tested on {} images"),
        (metrics.get("top5"), "top-5 {:.1f} %"),
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
        _hero(run),
    )


def _hero(run: Run) -> Markup:
    """A right and a wrong answer in large, for whoever reads no further."""
    if not run.inspection:
        return join()
    shown = samples.read_samples(run.inspection, run.arrays)
    text = "Selected samples, and how the answer came about over the time steps."
    if run.inspection.get("attention"):
        text += " The second picture glows where the last attention block fires."
    cards = samples.hero(shown, run.inspection["classes"])
    return tag("figure", cards, tag("figcaption", text), class_="hero")


def _mean_rate(run: Run) -> float | None:
    """Spikes / (neurons * T) over the whole network, in percent."""
    layers = run.inspection["layers"] if run.inspection else []
    neurons = sum(layer["neurons"] for layer in layers)
    if not neurons:
        return None
    spikes_per_step = sum(layer["rate"] * layer["neurons"] for layer in layers)
    return float(100 * spikes_per_step / neurons)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
