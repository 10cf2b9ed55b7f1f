"""Samples as cards: a picture, what it is, what the model made of it, where attention fired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.pictures import PIXELS, heat_uri, image_uri
from spikeformers.report.tables import DASH, percent

_WITH_ATTENTION = 6
_STEPS_IN_HERO = 5


@dataclass(frozen=True)
class Sample:
    """One sample and what the model made of it.

    Attributes:
        name: Its true class.
        label: The same as a number.
        steps: For each number of time steps, the best `classes` with their `probabilities`.
        image: uint8 `[C, H, W]`, grey or RGB.
        maps: Firing rates `[h, w]` of the attention blocks, in module order.
    """

    name: str
    label: int
    steps: Sequence[Mapping[str, Any]]
    image: np.ndarray
    maps: Sequence[np.ndarray]

    @property
    def hits(self) -> list[bool]:
        """After each number of time steps, is the best class the true one?"""
        return [step["classes"][0] == self.label for step in self.steps]

    @property
    def is_right(self) -> bool:
        """Is the best class after all time steps the true one?"""
        return self.hits[-1]


def read_samples(inspection: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Sample]:
    """Put together what `inspect.json` and `inspect.npz` say about the samples."""
    classes = inspection["classes"]
    maps = [arrays[block["array"]] for block in inspection.get("attention", [])]
    pairs = zip(inspection["samples"], arrays["images"], strict=False)
    return [
        Sample(
            name=classes[fact["label"]],
            label=fact["label"],
            steps=fact["steps"],
            image=image,
            maps=[of[i] for of in maps],
        )
        for i, (fact, image) in enumerate(pairs)
    ]


def hero(samples: Sequence[Sample], classes: Sequence[str]) -> Markup:
    """A right and a wrong sample, large, with the answer after each time step."""
    # A right answer that took its time tells more than one that was there at once.
    rights = sorted((s for s in samples if s.is_right), key=lambda sample: sample.hits[0])
    wrongs = [s for s in samples if not s.is_right]
    return tag(
        "div",
        *(_large_card(sample, classes) for sample in (*rights[:1], *wrongs[:1])),
        class_="hero",
    )


def cards(samples: Sequence[Sample], classes: Sequence[str]) -> Markup:
    """The wrong samples, then the right ones, each as a card."""
    return _by_verdict(samples, lambda sample: _card(sample, classes), "cards")


def attention(samples: Sequence[Sample], classes: Sequence[str]) -> Markup:
    """Some wrong and some right samples beside their first and last attention map."""
    wrong = [sample for sample in samples if not sample.is_right]
    right = [sample for sample in samples if sample.is_right]
    few = [*wrong[:_WITH_ATTENTION], *right[:_WITH_ATTENTION]]
    return _by_verdict(few, lambda sample: _attention_card(sample, classes), "cards wide")


def _by_verdict(samples: Sequence[Sample], card: Callable[[Sample], Markup], look: str) -> Markup:
    groups = []
    for title, verdict in (("Wrong", False), ("Right", True)):
        group = [card(sample) for sample in samples if sample.is_right is verdict]
        if group:
            groups.append(join(tag("h3", title), tag("div", *group, class_=look)))
    return join(*groups)


def _large_card(sample: Sample, classes: Sequence[str]) -> Markup:
    steps = list(enumerate(sample.steps, start=1))
    # The first answers and the last one.
    few = steps if len(steps) <= _STEPS_IN_HERO else [*steps[: _STEPS_IN_HERO - 1], steps[-1]]
    rows = [
        tag("li", tag("span", f"step {t}", class_="step"), _guess(sample, step, 0, classes))
        for t, step in few
    ]
    views = [_picture(sample), *(_overlay(sample, rates) for rates in sample.maps[-1:])]
    return tag(
        "article",
        tag("div", *views, class_="views"),
        tag("div", _title(sample, _outcome(sample, classes)), tag("ol", *rows)),
        class_=_verdict(sample),
    )


def _card(sample: Sample, classes: Sequence[str]) -> Markup:
    last = sample.steps[-1]
    return tag(
        "article",
        _picture(sample),
        _title(sample, sample.name),
        *(_guess(sample, last, place, classes) for place in range(len(last["classes"]))),
        _path(sample.hits),
        class_=_verdict(sample),
    )


def _attention_card(sample: Sample, classes: Sequence[str]) -> Markup:
    # One block has one map, not a first and a last.
    ends = sample.maps[:: max(len(sample.maps) - 1, 1)]
    figures = (
        tag("div", _overlay(sample, rates), tag("p", _range(rates), class_="range"))
        for rates in ends
    )
    share = _share(sample.steps[-1]["probabilities"][0])
    return tag(
        "article",
        tag("div", tag("div", _picture(sample)), *figures, class_="views"),
        _title(sample, _outcome(sample, classes), share),
        class_=_verdict(sample),
    )


def _verdict(sample: Sample) -> str:
    return "right" if sample.is_right else "wrong"


def _title(sample: Sample, name: str, *more: str) -> Markup:
    mark = tag("span", "✓" if sample.is_right else "✗", title=_verdict(sample), class_="mark")
    return tag("h4", tag("span", mark, name, title=name), *(tag("b", word) for word in more))


def _outcome(sample: Sample, classes: Sequence[str]) -> str:
    """The true class, and what a wrong sample was taken for."""
    answer = classes[sample.steps[-1]["classes"][0]]
    return sample.name if sample.is_right else f"{sample.name} → {answer}"


def _guess(sample: Sample, step: Mapping[str, Any], place: int, classes: Sequence[str]) -> Markup:
    guess, probability = step["classes"][place], step["probabilities"][place]
    return tag(
        "div",
        tag("span", classes[guess], title=classes[guess]),
        tag("span", _share(probability)),
        class_="guess true" if guess == sample.label else "guess",
        style=f"--share:{probability or 0:.3f}",
    )


def _share(probability: float | None) -> str:
    return DASH if probability is None else f"{100 * probability:.0f} %"


def _path(hits: Sequence[bool]) -> Markup:
    """One dot per time step, filled where the answer up to then is the true class."""
    dots = (tag("i", class_="hit" if hit else None) for hit in hits)
    spoken = ", ".join(f"{t}: {'right' if hit else 'wrong'}" for t, hit in enumerate(hits, start=1))
    return tag("p", *dots, title=f"after each time step: {spoken}", class_="path")


def _picture(sample: Sample) -> Markup:
    """`[C, H, W]` as an element."""
    image = sample.image
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    look = "pixels" if max(image.shape[1:]) <= PIXELS else None
    alt = f"a sample of class {sample.name}"
    return tag("img", src=image_uri(pixels), alt=alt, class_=look)


def _overlay(sample: Sample, rates: np.ndarray) -> Markup:
    alt = f"firing rate of the attention, {_range(rates)}"
    heat = tag("img", src=heat_uri(rates), alt=alt, class_="heat")
    return tag("div", _picture(sample), heat, class_="overlay")


def _range(rates: np.ndarray) -> str:
    low, high = 100 * float(rates.min()), 100 * float(rates.max())
    return f"{low:.1f} to {percent(high)}" if high else "silent"
