"""Curves and rasters as inline SVG, images as data URIs; the only file that knows matplotlib.

Figures are drawn in placeholder colours that become CSS variables, so that one drawing serves light
and dark pages. Text stays text, in the font of the page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from spikeformers.errors import MissingExtraError
from spikeformers.report.markup import Markup, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MUTED, LINE, TRAIN, HELD_OUT = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {MUTED: "muted", LINE: "line", TRAIN: "train", HELD_OUT: "held-out"}

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
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = TRAIN

    def points(self) -> tuple[list[float], list[float]]:
        """The measured points only."""
        known = [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]
        return [x for x, _ in known], [y for _, y in known]


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

    def paint(axes: Axes) -> None:
        for curve in curves:
            xs, ys = curve.points()
            marker = "o" if numbered or len(xs) < 13 else None
            axes.plot(xs, ys, color=curve.colour, label=curve.label, marker=marker)
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


def raster(title: str, spikes: np.ndarray) -> Markup:
    """Draw spikes `[neurons, T]` as marks: time to the right, neurons upwards."""
    mpl = _matplotlib()
    neurons, timesteps = spikes.shape
    mark = (mpl.path.Path.unit_rectangle().vertices - 0.5) * (0.86, 0.72)
    marks = [
        mpl.path.Path(mark + np.array([t + 1, neuron + 1])) for neuron, t in np.argwhere(spikes)
    ]

    def paint(axes: Axes) -> None:
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


def image_uri(image: np.ndarray) -> str:
    """Encode a picture, uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]`, as a PNG data URI."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "train") from error
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


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


def _draw(title: str, paint: Callable[[Axes], None], *, width: float, height: float) -> Markup:
    """Paint on fresh axes, `width` x `height` inches, and return them as inline SVG."""
    mpl = _matplotlib()
    file = io.StringIO()
    with mpl.rc_context():
        # A user's own matplotlibrc shall not change the report; the context restores it.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = mpl.figure.Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    return _inline(file.getvalue(), title)


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
