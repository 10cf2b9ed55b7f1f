"""Numbers for people: formats, and tables whose bars and shades are plain HTML.

Bars are HTML and not drawings, so that fifty layers stay readable on a phone and in print. What is
missing in a file is shown as a dash and never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spikeformers.report.markup import Markup, tag
from spikeformers.report.pictures import image_uri

DASH = "–"  # noqa: RUF001

# Beyond this many classes a table of counts is a wall; an image still shows its diagonal.
_MOST_CELLS = 24
_SHADE = (79, 110, 247)


def number(value: object, form: str = "g", unit: str = "") -> str:
    """Format a number, or a dash where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return DASH
    return f"{value:{form}}{unit}" if math.isfinite(value) else "not finite"


def percent(value: object) -> str:
    """Format a percentage that is already in 0..100."""
    return number(value, ".1f", " %")


def count(value: object) -> str:
    """Format a count with its thousands apart: `195 000` with narrow spaces."""
    return number(value, ",.0f").replace(",", "\u202f")


def duration(seconds: object) -> str:
    """Format seconds as people say them: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 60:
        return number(seconds, ".1f", " s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def facts(values: Mapping[str, Any]) -> Markup:
    """Table of keys and values; what is nested gets dotted keys and a heading of its own."""
    groups: dict[str, list[Markup]] = {}
    for key, value in _flatten(values):
        group, _, name = key.rpartition(".")
        row = tag("tr", tag("th", name, scope="row"), tag("td", _plain(value)))
        groups.setdefault(group, []).append(row)
    bodies = (
        tag("tbody", tag("tr", tag("th", group, colspan=2)) if group else "", *rows)
        for group, rows in groups.items()
    )
    return tag("table", *bodies, class_="facts")


def events(happened: Sequence[Mapping[str, Any]], most: int = 20) -> Markup:
    """What interrupted training as a list; what exceeds `most` is counted."""
    items = [tag("li", tag("span", _told(fact)), tag("b", _when(fact))) for fact in happened[:most]]
    if len(happened) > most:
        items.append(tag("li", f"and {len(happened) - most} more in log.jsonl"))
    return tag("ul", *items, class_="plain")


def _told(fact: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in fact.items() if k not in ("event", "epoch", "step", "message")}
    details = [str(fact["message"])] if fact.get("message") else []
    details += [f"{key} {_plain(value)}" for key, value in rest.items()]
    return f"{fact['event']}: {', '.join(details)}" if details else str(fact["event"])


def _when(fact: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {fact[key]}" for key in ("epoch", "step") if key in fact)


def firing(layers: Sequence[Mapping[str, Any]]) -> Markup:
    """Firing rate of each layer as bars in module order, coloured by depth."""
    busiest = max((layer["rate"] for layer in layers), default=0) or 1
    heads = ("layer", "firing rate", "", "per step", "neurons", "never fire", "always fire")
    rows = [tag("tr", *(tag("th", head, scope="col") for head in heads))]
    for i, layer in enumerate(layers):
        rate = layer["rate"]
        silent = tag("span", "silent", class_="flag") if rate == 0 else ""
        bar = tag("i", style=f"width:{100 * rate / busiest:.1f}%")
        shares = (count(layer["neurons"]), _share(layer["never_fired"]))
        rows.append(
            tag(
                "tr",
                tag("th", layer["name"], " ", silent, scope="row"),
                tag("td", bar, class_="bar"),
                tag("td", _share(rate), class_="rate"),
                tag("td", _sparks(layer["rate_per_step"], busiest), class_="steps"),
                *(tag("td", cell) for cell in (*shares, _share(layer["always_fired"]))),
                style=f"--depth:{i / max(len(layers) - 1, 1):.3f}",
            )
        )
    return _scrolling(tag("table", *rows, class_="firing"))


def steps(top1: Sequence[float | None]) -> Markup:
    """Accuracy after each number of time steps as a list."""
    items = (
        tag("li", f"{t} step{'s'[: t > 1]}", tag("b", percent(value)))
        for t, value in enumerate(top1, start=1)
    )
    return tag("ul", *items, class_="plain")


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Confusion matrix, true classes downwards, each row shaded by its share."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(names) > _MOST_CELLS:
        return _confusion_image(shares)
    corner = tag("td", "true ↓ predicted →", class_="corner")
    rows = [tag("tr", corner, *(tag("th", tag("span", name), scope="col") for name in names))]
    for name, row, row_shares in zip(names, counts, shares, strict=True):
        cells = [
            tag(
                "td",
                count(float(cell)) if cell else "",
                style=f"--share:{share:.3f}",
                class_="strong" if share > 0.5 else None,
            )
            for cell, share in zip(row, row_shares, strict=True)
        ]
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    sideways = " sideways" if max(map(len, names)) > 3 else ""
    return _scrolling(tag("table", *rows, class_=f"confusion{sideways}"))


def mistakes(matrix: Sequence[Sequence[int]], names: Sequence[str], most: int = 6) -> Markup:
    """The most frequent confusions as a list, largest first."""
    counts = np.asarray(matrix, dtype=float) * (1 - np.eye(len(names)))
    # A stable sort of the negative keeps ties in class order.
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    items = [
        tag("li", tag("span", names[i], " taken for ", names[j]), tag("b", count(counts[i, j])))
        for i, j in (divmod(int(flat), len(names)) for flat in order)
        if counts[i, j]
    ]
    return tag("ul", *items, class_="plain") if items else tag("p", "No image was confused.")


def _confusion_image(shares: np.ndarray) -> Markup:
    # The shade is the opacity, so that the page shines through in light and dark.
    shade = np.sqrt(shares) * 255
    colour = np.broadcast_to(np.array(_SHADE, np.uint8), (*shares.shape, 3))
    pixels = np.concatenate([colour, shade.astype(np.uint8)[..., None]], axis=2)
    alt = "confusion matrix: true classes downwards, predicted classes to the right"
    image = tag("img", src=image_uri(pixels), alt=alt, class_="confusion")
    return tag("div", tag("p", "true ↓ predicted →", class_="note"), image)


def _sparks(rates: Sequence[float], busiest: float) -> Markup:
    spoken = ", ".join(_share(rate) for rate in rates)
    bars = (tag("i", style=f"height:{100 * min(rate / busiest, 1):.0f}%") for rate in rates)
    return tag("span", *bars, title=spoken)


def _share(value: object) -> str:
    if not isinstance(value, int | float):
        return DASH
    # Hardly ever is not never.
    return "< 0.1 %" if 0 < value < 0.0005 else percent(100 * value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, plain values of a level before its nested ones."""
    for key, value in values.items():
        if not isinstance(value, Mapping) or not value:
            yield f"{prefix}{key}", value
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")


def _plain(value: Any) -> str:
    if value is None or value in ({}, []):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _scrolling(table: Markup) -> Markup:
    """A table that scrolls inside its frame where the screen is narrower."""
    return tag("div", table, class_="scroll")
