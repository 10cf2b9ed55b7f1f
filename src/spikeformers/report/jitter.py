"""What is left of clocked networks without their clock, as one picture beside `async.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spikeformers.errors import DataError
from spikeformers.report.plots import HELD_OUT, MUTED, PRINTED, TRAIN, write_png
from spikeformers.report.run import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spikeformers.report.run import Facts

PANELS = (
    ("agreement", "same answer as clocked, %"),
    ("shared_spikes", "spikes in common with clocked, %"),
)


def draw_jitter(folder: str | Path) -> Path:
    """Draw `async.png` from `async.json` in a folder, and nothing else.

    Args:
        folder: Holds `async.json`, which `spikeformers async` writes.

    Returns:
        Path of the picture.

    Raises:
        DataError: The file is missing or damaged.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(folder) / "async.json"
    if not path.is_file():
        raise DataError(f"there is no {path}: let 'spikeformers async' write it")
    facts = read_json(path)
    if not facts.get("models"):
        raise DataError(f"{path} has no models: let 'spikeformers async' write it anew")

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(PANELS))
        for axes, (key, label) in zip(panels, PANELS, strict=True):
            _panel(axes, facts["models"], key)
            axes.set(xlabel="longest delay of a spike, steps", ylabel=label)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)

    return write_png(path.with_suffix(".png"), paint, width=7.2, height=3.2)


def _panel(axes: Axes, models: list[Facts], key: str) -> None:
    colours = [PRINTED[colour] for colour in (TRAIN, HELD_OUT, MUTED)]
    for i, model in enumerate(models):
        for neurons, dashes in (("fire at once", "-"), ("wait", ":")):
            rows = [row for row in model["rows"] if row["neurons"] == neurons]
            axes.plot(
                [row["jitter"] for row in rows],
                [100 * row[key] for row in rows],
                color=colours[i % len(colours)],
                linestyle=dashes,
                marker="o",
                label=f"{model['model']}, neurons {neurons}",
            )
    axes.set_ylim(-3, 105)
