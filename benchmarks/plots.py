"""The results as bars: how many times better ours is."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results import Row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw one panel per case and one bar per row; the line at 1 is the peer."""
    cases = list(dict.fromkeys(row.case for row in rows))
    by_case = [[row for row in rows if row.case == case] for case in cases]
    figure = Figure(figsize=(9, 1.2 * len(cases) + 0.22 * len(rows)), layout="constrained")
    panels = figure.subplots(
        len(cases),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(part) + 1 for part in by_case]},
    )
    for axes, case, part in zip(panels[:, 0], cases, by_case, strict=True):
        bars = axes.barh([label(row) for row in part], [row.ratio for row in part], color="#4477aa")
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
        axes.axvline(1, color="#222222", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(case, loc="left", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel(
        "times better than the peer (its share for copy-bandwidth)", fontsize=8
    )
    figure.savefig(path, dpi=150)


def label(row: Row) -> str:
    """Name a bar by what tells it from its neighbours."""
    mode = f"memory={row.memory}, " if row.memory else ""
    return (
        f"{row.peer}, {row.dtype_ours}, {mode}{row.setting.partition(', ')[2]}, "
        f"firing {row.firing_rate_measured:.1%}, {row.allocator}"
    )
