"""Sample predictions as cards: the picture, what it is, what the model made of it step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spikeformers.report.markup import Markup, tag
from spikeformers.report.plots import image_uri
from spikeformers.report.tables import DASH

MOST = 24


def cards(
    samples: Sequence[Mapping[str, Any]], images: np.ndarray, classes: Sequence[str]
) -> Markup:
    """The first samples of the batch, unselected, each as a card.

    Args:
        samples: `label` and, for each number of time steps, the best `classes` with their
            `probabilities`.
        images: uint8 `[B, C, H, W]`, grey or RGB.
        classes: Names of all classes.
    """
    shown = zip(samples[:MOST], images, strict=False)
    return tag("div", *(_card(sample, image, classes) for sample, image in shown), class_="cards")


def right(sample: Mapping[str, Any]) -> bool:
    """Is the best class after all time steps the true one?"""
    return bool(sample["steps"][-1]["classes"][0] == sample["label"])


def _card(sample: Mapping[str, Any], image: np.ndarray, classes: Sequence[str]) -> Markup:
    label, steps = sample["label"], sample["steps"]
    verdict = "right" if right(sample) else "wrong"
    guesses = zip(steps[-1]["classes"], steps[-1]["probabilities"], strict=True)
    return tag(
        "article",
        tag("img", src=image_uri(_picture(image)), alt=f"a sample of class {classes[label]}"),
        tag(
            "h3",
            tag("span", "✓" if verdict == "right" else "✗", title=verdict, class_="mark"),
            classes[label],
        ),
        *(_guess(classes[k], p, k == label) for k, p in guesses),
        _path([step["classes"][0] == label for step in steps]),
        class_=verdict,
    )


def _guess(name: str, probability: float | None, is_true: bool) -> Markup:
    share = DASH if probability is None else f"{100 * probability:.0f} %"
    return tag(
        "div",
        tag("span", name, title=name),
        tag("span", share),
        class_="guess true" if is_true else "guess",
        style=f"--share:{probability or 0:.3f}",
    )


def _path(hits: Sequence[bool]) -> Markup:
    """One dot per time step, filled where the answer up to then is the true class."""
    dots = (tag("i", class_="hit" if hit else None) for hit in hits)
    spoken = ", ".join(f"{t}: {'right' if hit else 'wrong'}" for t, hit in enumerate(hits, start=1))
    return tag("p", *dots, title=f"after each time step: {spoken}", class_="path")


def _picture(image: np.ndarray) -> np.ndarray:
    """`[C, H, W]` as `[H, W]` or `[H, W, 3]`."""
    return image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
