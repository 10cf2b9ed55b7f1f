"""Several models beside each other: a table, and accuracy against each cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeformers.errors import DataError
from spikeformers.report import plots, tables
from spikeformers.report.document import document, write_page
from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.plots import Point
from spikeformers.report.run import Facts, read_json


@dataclass(frozen=True)
class Column:
    """One quantity of the table.

    Attributes:
        key: Where a row has it.
        name: What people call it, with its unit.
        write: Formats it.
        best: `max` or `min` where one end is the better one.
        factor: From the row's unit to the one that is shown.
    """

    key: str
    name: str
    write: Callable[[object], str]
    best: Callable[[Sequence[float]], float] | None = None
    factor: float = 1

    def value(self, row: Facts) -> float | None:
        """Return the number that a row shows, or `None` where nobody measured it."""
        value = row.get(self.key)
        return None if value is None else float(value * self.factor)

    def text(self, row: Facts) -> str:
        """Return it as people read it."""
        return self.write(self.value(row))

    def best_of(self, rows: Sequence[Facts]) -> Facts | None:
        """Return the best row, the first of equals; `None` where there is nothing to choose."""
        known = [row for row in rows if row["top1"] is not None and self.value(row) is not None]
        if self.best is None or len(known) < 2:
            return None
        values = [self.value(row) or 0.0 for row in known]
        return known[values.index(self.best(values))]


ACCURACY = Column("top1", "top-1 %", lambda value: tables.number(value, ".2f"), max)
COSTS = [
    Column("parameters", "parameters", tables.count, min),
    Column("firing_rate", "firing %", lambda v: tables.number(v, ".2f"), min, factor=100),
    Column("images_per_second", "images/s", tables.count, max),
    Column("memory_mib", "MiB", tables.count, min),
    Column("train_images_per_second", "train images/s", tables.count, max),
    Column("train_memory_mib", "train MiB", tables.count, min),
]
COLUMNS = [
    COSTS[0],
    Column("timesteps", "T", tables.count),
    ACCURACY,
    *COSTS[1:],
    Column("epochs", "epochs", tables.count),
    Column("minutes", "minutes", lambda value: tables.number(value, ".1f")),
]

_NOTE = (
    "Top-1 is the accuracy after the last epoch, on held-out images that nothing was chosen by; "
    "firing is spikes / (neurons · T) over all neurons and these images. Images/s are those of the "
    "folded model, in batches of 100. MiB is the peak of memory in evaluation: of the tensors on a "
    "GPU, of the whole process on a CPU, PyTorch and the data set included. Columns named train "
    "say the same of training. Green is the best value."
)


def write_comparison(folder: str | Path) -> Path:
    """Write `compare.html` beside `compare.json`, from that file and nothing else.

    Args:
        folder: Holds `compare.json`.

    Returns:
        Path of the page.

    Raises:
        DataError: The file is missing or damaged.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(folder) / "compare.json"
    if not path.is_file():
        raise DataError(f"there is no {path}: let 'spikeformers compare' write it")
    facts = read_json(path)
    if "rows" not in facts:
        raise DataError(f"{path} has no rows: let 'spikeformers compare' write it anew")
    return write_page(path.with_suffix(".html"), _page(facts))


def comparison_table(facts: Facts) -> list[list[str]]:
    """Return the content of `compare.json` as a table of texts, its heads first."""
    heads = ["", "model", *(column.name for column in COLUMNS)]
    rows = [
        [str(i), row["model"], *(column.text(row) for column in COLUMNS)]
        for i, row in enumerate(facts["rows"], start=1)
    ]
    return [heads, *rows]


def _page(facts: Facts) -> str:
    rows = facts["rows"]
    title = f"{len(rows)} models on {facts['data']['name']}"
    training = {key: facts["recipe"][key] for key in ("data", "augment", "train", "distill")}
    sections = [
        ("Figures", join(_note(_NOTE), _table(rows), _failures(rows))),
        ("Accuracy against cost", _plots(rows)),
        ("Recipe", join(_note(f"To repeat it: {facts['command']}"), tables.facts(training))),
        ("Environment", tables.facts(facts["environment"])),
    ]
    main = tag("main", *(tag("section", tag("h2", name), body) for name, body in sections))
    return document(f"{title} · comparison", _header(title, facts), main)


def _header(title: str, facts: Facts) -> Markup:
    data, budget, where = facts["data"], facts["budget"], facts["environment"]
    allowed = (
        f"{budget['minutes']:g} minutes of training each"
        if budget["minutes"] is not None
        else f"{budget['epochs']} epochs each"
    )
    line = (
        f"{allowed} · {data['training_images']} training and {data['held_out_images']} held-out "
        f"images of {data['classes']} classes · {where['device_name']}"
    )
    tiles = [
        _tile("most accurate", ACCURACY, facts["rows"], " %"),
        _tile("fewest spikes", COSTS[1], facts["rows"], " %"),
        _tile("fastest inference", COSTS[2], facts["rows"], "/s"),
        _tile("smallest", COSTS[0], facts["rows"], ""),
    ]
    return tag(
        "header",
        tag("p", "spiking vision transformers · comparison", class_="kicker"),
        tag("h1", title),
        tag("p", line),
        tag("dl", *tiles, class_="tiles"),
    )


def _tile(label: str, column: Column, rows: Sequence[Facts], unit: str) -> Markup:
    """The best row of a column."""
    best = column.best_of(rows)
    if best is None:
        return tag("div", tag("dt", label), tag("dd", tables.DASH))
    return tag("div", tag("dt", f"{label}: {best['model']}"), tag("dd", column.text(best), unit))


def _table(rows: Sequence[Facts]) -> Markup:
    heads = ["", "model", *(column.name for column in COLUMNS)]
    lines = [tag("tr", *(tag("th", head, scope="col") for head in heads))]
    for i, row in enumerate(rows, start=1):
        cells = (
            tag("td", column.text(row), class_="best" if row is column.best_of(rows) else None)
            for column in COLUMNS
        )
        lines.append(tag("tr", tag("th", i), tag("th", row["model"], scope="row"), *cells))
    return tag("div", tag("table", *lines, class_="comparison"), class_="scroll")


def _failures(rows: Sequence[Facts]) -> Markup:
    items = [
        tag("li", tag("span", row["model"]), tag("span", row["error"]))
        for row in rows
        if row["error"]
    ]
    return join(tag("h3", "Failed"), tag("ul", *items, class_="plain")) if items else join()


def _plots(rows: Sequence[Facts]) -> Markup:
    """One plot for each cost that somebody measured; points are numbered as in the table."""
    figures = []
    for cost in COSTS:
        points = [
            Point(str(i), x, y)
            for i, row in enumerate(rows, start=1)
            if (x := cost.value(row)) is not None and (y := ACCURACY.value(row)) is not None
        ]
        if points:
            title = f"top-1 accuracy against {cost.name}"
            drawing = plots.scatter(title, points, x=cost.name, y=ACCURACY.name)
            figures.append(tag("figure", tag("figcaption", cost.name), drawing))
    if not figures:
        return _note("No model has been measured yet.")
    note = _note("Each model has the number of its line in the table.")
    return join(note, tag("div", *figures, class_="figures"))


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")
