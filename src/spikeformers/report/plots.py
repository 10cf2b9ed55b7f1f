"""Curves, rasters and membrane traces as inline SVG; the only file that knows matplotlib.

Figures are drawn in placeholder colours that become CSS variables, so that one drawing serves light
and dark pages. Text stays text, in the font of the page.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from spikeformers.errors import MissingExtraError
from spikeformers.report.markup import Markup, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MUTED, LINE, TRAIN, HELD_OUT = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {MUTED: "muted", LINE: "line", TRAIN: "train", HELD_OUT: "held-out"}

PRINTED = {MUTED: "#646b82", LINE: "#dde1ec", TRAIN: "#4f6ef7", HELD_OUT: "#ee7b30"}
"""What the colours are in a picture that stands for itself, those of the light page."""

_STYLE = {
    "svg.fonttype": "none",
    # Element names derive from it: the same run gives the same bytes.
    "svg.hashsalt": "spikeformers",
    "font.size": 8,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot; points without a value are left out.

    Attributes:
        label: Its name in the legend.
        x: Where.
        y: What was measured there, or `None`.
        colour: One of the placeholder colours.
        strength: Opacity, which tells the members of a family apart.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = TRAIN
    strength: float = 1.0

    def points(self) -> tuple[list[float], list[float]]:
        """The measured points only."""
        known = [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]
        return [x for x, _ in known], [y for _, y in known]


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot."""

    label: str
    x: float
    y: float


def curves(
    title: str, curves: Sequence[Curve], *, x: str, y: str, numbered: bool = False
) -> Markup:
    """Draw curves over one integer axis.

    Args:
        title: What the plot shows, for readers who do not see it.
        curves: The lines; more than one get a legend.
        x: Name of the horizontal axis.
        y: Name and unit of the vertical axis.
        numbered: Write each value above its point.
    """
    mpl = _matplotlib()

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            xs, ys = curve.points()
            marker = "o" if numbered or len(xs) < 13 else None
            (line,) = axes.plot(xs, ys, color=curve.colour, label=curve.label, marker=marker)
            line.set_alpha(curve.strength)
            if numbered:
                _number_points(axes, xs, ys)
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.06, y=0.16)
        axes.grid(axis="x", visible=False)
        axes.spines["left"].set_visible(False)
        if len(curves) > 1:
            axes.legend(loc="lower right")

    return _draw(title, paint, width=3.6, height=2.3)


def scatter(title: str, points: Sequence[Point], *, x: str, y: str) -> Markup:
    """Draw labelled points; the horizontal axis is logarithmic where it spans more than a decade.

    Args:
        title: What the plot shows, for readers who do not see it.
        points: At least one.
        x: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis.
    """
    mpl = _matplotlib()
    xs = [point.x for point in points]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(xs, [point.y for point in points], "o", color=HELD_OUT, markersize=5)
        for point in points:
            axes.annotate(
                point.label,
                (point.x, point.y),
                xytext=(4, 3),
                textcoords="offset points",
                color=MUTED,
            )
        axes.set(xlabel=x, ylabel=y)
        if min(xs) > 0 and max(xs) > 10 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_short))
        axes.margins(x=0.12, y=0.16)

    return _draw(title, paint, width=3.6, height=2.6)


def _short(value: float, _position: int) -> str:
    """Write 2400000 as 2.4M: a tick has no room for zeros."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def raster(title: str, spikes: np.ndarray) -> Markup:
    """Draw spikes `[neurons, T]` as marks: time to the right, neurons upwards."""
    mpl = _matplotlib()
    neurons, timesteps = spikes.shape
    mark = (mpl.path.Path.unit_rectangle().vertices - 0.5) * (0.86, 0.72)
    marks = [
        mpl.path.Path(mark + np.array([t + 1, neuron + 1])) for neuron, t in np.argwhere(spikes)
    ]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        if marks:
            # One outline for all marks keeps a busy raster at a few kilobytes.
            outline = mpl.path.Path.make_compound_path(*marks)
            axes.add_patch(mpl.patches.PathPatch(outline, facecolor=TRAIN, edgecolor="none"))
        axes.set(xlabel="time step", ylabel="neuron")
        axes.set(xlim=(0.4, timesteps + 0.6), ylim=(0.3, neurons + 0.7))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(visible=False)

    return _draw(title, paint, width=3.2, height=3.2)


@dataclass(frozen=True)
class Trace:
    """What some neurons went through.

    Attributes:
        neurons: Their names.
        spikes: When they fired, bool `[neurons, T]`.
        after: Membrane after each step `[neurons, T]`.
        before: Membrane that was compared with the threshold, where known.
        threshold: Threshold of each neuron, where known.
    """

    neurons: Sequence[int]
    spikes: np.ndarray
    after: np.ndarray
    before: np.ndarray | None = None
    threshold: np.ndarray | None = None

    @property
    def met(self) -> np.ndarray:
        """The potential at each step that says most: what met the threshold, where known."""
        return self.after if self.before is None else self.before

    def path(self, neuron: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the line goes: up to the potential before the reset, down to the one after it."""
        steps = np.arange(1, self.spikes.shape[1] + 1)
        if self.before is None:
            return steps, self.after[neuron]
        both = np.stack([self.before[neuron], self.after[neuron]], axis=1)
        return np.repeat(steps, 2), both.ravel()


def traces(title: str, trace: Trace) -> Markup:
    """Draw the membranes of some neurons, one below the other on one scale, spikes marked."""
    mpl = _matplotlib()
    timesteps = trace.spikes.shape[1]
    low, high = _limits(trace.met, trace.after, trace.threshold)

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(trace.neurons), sharex=True, squeeze=False)[:, 0]
        for i, (axes, neuron) in enumerate(zip(rows, trace.neurons, strict=True)):
            axes.plot(*trace.path(i), color=TRAIN, linewidth=1.3)
            _mark_steps(axes, trace.met[i], trace.spikes[i])
            if trace.threshold is not None:
                axes.axhline(trace.threshold[i], color=MUTED, linewidth=0.9, dashes=(3, 2))
            axes.set(xlim=(0.6, timesteps + 0.4), ylim=(low, high))
            axes.set_ylabel(f"{neuron}", rotation=0, ha="right", va="center")
            axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(2))
            axes.tick_params(labelsize=6)
            axes.grid(visible=False)
        rows[-1].xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        rows[-1].tick_params(axis="x", labelsize=8)
        rows[-1].set(xlabel="time step")

    return _draw(title, paint, width=3.2, height=0.5 + 0.45 * len(trace.neurons))


def _mark_steps(axes: Axes, potentials: np.ndarray, spikes: np.ndarray) -> None:
    """A dot per step, a large one where the neuron fired."""
    steps = np.arange(1, len(spikes) + 1)
    axes.plot(steps[~spikes], potentials[~spikes], "o", color=TRAIN, markersize=2.6)
    axes.plot(steps[spikes], potentials[spikes], "o", color=HELD_OUT, markersize=5)


def _limits(*arrays: np.ndarray | None) -> tuple[float, float]:
    """A range with some air around all finite values."""
    values = np.concatenate([array.ravel() for array in arrays if array is not None])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    air = 0.18 * (high - low) or 1.0
    return float(low - air), float(high + air)


def _number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        # In a dip the curve passes above its point, so the number goes below.
        around = ys[max(i - 1, 0) : i + 2]
        up = 6 if 2 * y >= min(around) + max(around) else -12
        axes.annotate(
            f"{y:.1f}", (x, y), xytext=(0, up), textcoords="offset points", ha="center", color=MUTED
        )


def _matplotlib() -> ModuleType:
    """Import matplotlib when a plot is wanted, not when the library is imported."""
    try:
        import matplotlib.figure
        import matplotlib.patches
        import matplotlib.path
        import matplotlib.ticker
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    return matplotlib


def _draw(title: str, paint: Callable[[Figure], None], *, width: float, height: float) -> Markup:
    """Paint on a fresh figure, `width` x `height` inches, and return them as inline SVG."""
    mpl = _matplotlib()
    file = io.StringIO()
    with mpl.rc_context():
        # A user's own matplotlibrc shall not change the report; the context restores it.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = mpl.figure.Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return _inline(file.getvalue(), title)


def write_png(path: Path, paint: Callable[[Figure], None], *, width: float, height: float) -> Path:
    """Paint on a fresh white figure, `width` x `height` inches, and write a PNG, or nothing.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    mpl = _matplotlib()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update({key: PRINTED.get(str(v), v) for key, v in _STYLE.items()})
            figure = mpl.figure.Figure(figsize=(width, height), layout="constrained")
            paint(figure)
            figure.savefig(draft, format="png", dpi=160, facecolor="white")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _inline(svg: str, title: str) -> Markup:
    """Make a stand-alone SVG file a part of a page, which gives it size, colours and font."""
    view, drawing = re.findall(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>(.*)</svg>', svg, re.DOTALL)[0]
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"font-family: [^;]*; ", "", drawing).replace("xlink:href", "href")
    # Group names repeat from figure to figure, and nothing refers to them.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{variable})")
    return tag("svg", Markup(drawing), viewBox=view, role="img", aria_label=title)
