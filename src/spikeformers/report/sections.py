"""The sections of the page: each is a function `Run -> Markup`; `SECTIONS` is their order.

A section says what it shows and how that was counted, and says so where a file has nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spikeformers.report import plots, proofs, samples, tables
from spikeformers.report.markup import Markup, join, tag
from spikeformers.report.plots import HELD_OUT, TRAIN, Curve
from spikeformers.report.run import Facts, Run

Arrays = dict[str, np.ndarray]
_UNINSPECTED = (
    "This run was not inspected: inspect.json and inspect.npz are missing. "
    "`spikeformers report RUN` writes them."
)


def _training(run: Run) -> Markup:
    note = f"Lines of the log that were cut off and left out: {run.unreadable}."
    return join(
        _epochs(run.epochs) if run.epochs else _note("The log holds no finished epoch."),
        join(tag("h3", "Events"), tables.events(run.events)) if run.events else "",
        _note(note) if run.unreadable else "",
    )


def _epochs(epochs: Sequence[Facts]) -> Markup:
    def curve(label: str, key: str, colour: str = TRAIN) -> Curve:
        measured = [fact.get(key) for fact in epochs]
        return Curve(label, [fact["epoch"] for fact in epochs], measured, colour)

    loss = [curve("training", "loss")]
    top1 = [curve("training", "train_top1"), curve("held-out", "top1", HELD_OUT)]
    drawings = [
        ("Loss", loss, "loss"),
        ("Top-1 accuracy", top1, "%"),
        ("Learning rate", [curve("learning rate", "learning_rate")], "learning rate"),
    ]
    if all(fact.get("train_top1") is None for fact in epochs):
        # Pre-training without labels: the held-out loss takes the place of the accuracy.
        loss.append(curve("held-out", "held_out_loss", HELD_OUT))
        del drawings[1]
    figures = [
        _figure(title, plots.curves(f"{title} by epoch", lines, x="epoch", y=unit))
        for title, lines, unit in drawings
    ]
    return tag("div", *figures, class_="figures")


def _anytime(run: Run) -> Markup:
    top1 = run.metrics.get("top1_per_step")
    if not top1:
        return _note("metrics.json holds no accuracy per time step (top1_per_step).")
    line = Curve("top-1", range(1, len(top1) + 1), top1, HELD_OUT)
    drawing = plots.curves(
        "top-1 accuracy by time step", [line], x="time steps read out", y="top-1, %", numbered=True
    )
    text = "One forward pass, read out early: the answer after the first t of T time steps."
    figures = [_figure("At the end", drawing)]
    if family := _anytime_by_epoch(run.epochs):
        title = "top-1 accuracy after each number of time steps, by epoch"
        drawing = plots.curves(title, family, x="epoch", y="top-1, %")
        figures.append(_figure("While training", drawing))
    look = "figures" if family else "beside"
    return join(_note(text), tag("div", *figures, tables.steps(top1), class_=look))


def _anytime_by_epoch(epochs: Sequence[Facts]) -> list[Curve]:
    """One curve for each of a few numbers of time steps, the more the stronger."""
    known = [fact for fact in epochs if fact.get("top1_per_step")]
    timesteps = min((len(fact["top1_per_step"]) for fact in known), default=0)
    few = sorted({round(1 + (timesteps - 1) * i / 4) for i in range(5)}) if timesteps else []
    return [
        Curve(
            f"{t} step{'s'[: t > 1]}",
            [fact["epoch"] for fact in known],
            [fact["top1_per_step"][t - 1] for fact in known],
            HELD_OUT,
            strength=0.25 + 0.75 * t / timesteps,
        )
        for t in few
    ]


def _firing(inspection: Facts, _arrays: Arrays) -> Markup:
    layers = inspection["layers"]
    looked = inspection.get("looked_at")
    batch = f"all {looked['images']} samples looked at" if looked else "the inspected samples"
    silent = sum(layer["rate"] == 0 for layer in layers)
    text = (
        f"Spikes / (neurons · time steps), on {batch}. Bars are scaled to the busiest layer and "
        f"coloured by depth. {silent or 'No'} of {len(layers)} layers silent."
    )
    return join(_note(text), tables.firing(layers))


def _spikes(inspection: Facts, arrays: Arrays) -> Markup:
    rasters = [
        _figure(drawn["layer"], plots.raster(f"spikes of {drawn['layer']}", arrays[drawn["array"]]))
        for drawn in inspection["rasters"]
    ]
    name = inspection["classes"][inspection["samples"][0]["label"]]
    text = (
        f"The first sample, of class {name}, seen by evenly spread neurons of the first, middle "
        "and last layer."
    )
    parts = [_note(text), tag("div", *rasters, class_="figures")]
    if traces := inspection.get("traces"):
        text = (
            "The same sample, seen by single neurons, each named by its index: the potential that "
            "meets the threshold (dashed) at each time step, and what the reset leaves of it. A "
            "large dot is a spike. Neurons that spike at some steps and rest at others come first. "
            "Where a neuron has another equation than LIF's, only the potential after the reset is "
            "known."
        )
        figures = [_trace(drawn, arrays) for drawn in traces]
        parts += [tag("h3", "Membrane potentials"), _note(text)]
        parts += [tag("div", *figures, class_="figures")]
    return join(*parts)


def _trace(drawn: Facts, arrays: Arrays) -> Markup:
    # A part that does not exist is named null.
    spikes, after, before, threshold = (
        arrays.get(drawn[part] or "") for part in ("spikes", "after", "before", "threshold")
    )
    assert spikes is not None and after is not None
    trace = plots.Trace(drawn["neurons"], spikes, after, before, threshold)
    quantity = "after the reset" if before is None else "before and after the reset"
    drawing = plots.traces(f"membrane potentials of {drawn['layer']}, {quantity}", trace)
    return _figure(join(drawn["layer"], " ", tag("small", quantity)), drawing)


def _attention(inspection: Facts, arrays: Arrays) -> Markup:
    blocks = [block["layer"] for block in inspection.get("attention", [])]
    if not blocks:
        return _note("No attention maps: the model has no attention block on maps of places.")
    text = (
        "Spiking attention has no softmax and so no matrix of weights to look at. Shown is how "
        "often each place of the map fires in the attention's output, the spikes that enter its "
        "output projection: spikes / (channels · time steps), bilinearly enlarged over the "
        "picture. Colours run from the lowest to the highest rate of each map, written below it."
    )
    ends = f"{blocks[0]}, then {blocks[-1]}" if len(blocks) > 1 else blocks[0]
    shown = samples.read_samples(inspection, arrays)
    cards = samples.attention(shown, inspection["classes"])
    return join(_note(text), _note(f"Blocks: {ends}. {_selected(inspection, shown)}"), cards)


def _samples(inspection: Facts, arrays: Arrays) -> Markup:
    shown = samples.read_samples(inspection, arrays)
    text = (
        f"{_selected(inspection, shown)} The dots are filled where the answer was right after 1, "
        "2, … time steps."
    )
    return join(_note(text), samples.cards(shown, inspection["classes"]))


def _selected(inspection: Facts, shown: Sequence[samples.Sample]) -> str:
    """How the samples came here: nobody shall take their share of mistakes for the model's."""
    right = sum(sample.is_right for sample in shown)
    counts = f"{right} right and {len(shown) - right} wrong"
    looked = inspection.get("looked_at")
    if not looked:
        return f"{counts} samples."
    return (
        f"Selected: {counts} of {looked['images']} looked at, of which {looked['right']} are right."
    )


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


def _facts(values: Facts | None, otherwise: str) -> Markup:
    return tables.facts(values) if values else _note(otherwise)


def _inspected(write: Callable[[Facts, Arrays], Markup]) -> Callable[[Run], Markup]:
    """A section about what inspection saw, or a note where there was none."""
    return lambda run: write(run.inspection, run.arrays) if run.inspection else _note(_UNINSPECTED)


def _figure(title: str, drawing: Markup) -> Markup:
    return tag("figure", tag("figcaption", title), drawing)


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")


SECTIONS: list[tuple[str, Callable[[Run], Markup]]] = [
    ("Training", _training),
    ("Anytime accuracy", _anytime),
    ("Firing rates", _inspected(_firing)),
    ("Spikes", _inspected(_spikes)),
    ("Attention", _inspected(_attention)),
    ("Predictions", _inspected(_samples)),
    ("Confusion", _confusion),
    ("Operations", proofs.operations),
    ("Energy", proofs.energy),
    ("Chips", proofs.chips),
    ("Configuration", _configuration),
    ("Environment", _environment),
]
