"""Each architecture equals the authors' implementation: outputs, rates, gradients, statistics."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.models import Backbone
from spikeformers.models._official import _find
from spikeformers.neurons import Neuron
from spikeformers.types import Outputs
from tests.golden import Case, cases, fingerprint

CASES = cases()
# Where the official code mixes the samples of a batch, the repaired model is tested as well.
DEFECTIVE = [case for case in CASES if not case.is_sound]


def build(case: Case, corrected: bool = False) -> Backbone:
    model = sf.from_official(case.state(), case.source, corrected, **case.facts["kwargs"])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def scores(model: Backbone, y: Tensor | Outputs | list[Tensor]) -> list[Tensor]:
    """Return what each head says of each sample, `[B, K]`, the main one first."""
    if isinstance(y, list):  # detection maps have no scores: the golden data sums them up
        return [torch.stack([m.mean((0, -2, -1)) for m in y]).sum(0)]
    heads = [y.logits, *y.aux.values()] if isinstance(y, Outputs) else [y]
    return [model.readout(head) for head in heads]


def mean_outputs(model: Backbone, x: Tensor) -> dict[str, Tensor]:
    """Run the model and return the mean output of every neuron under the authors' names."""
    names, means = sf.official_names(model), {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, path=path: means.update({names[path]: output.mean()})
        )
        for path, module in model.named_modules()
        if isinstance(module, Neuron) and path in names
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return means


def check_training_step(model: Backbone, case: Case, arrays: Mapping[str, np.ndarray]) -> None:
    heads = scores(model.train(), model(case.input()))
    labels = torch.arange(len(heads[0])) % case.facts["classes"]
    loss = torch.stack([F.cross_entropy(head, labels) for head in heads]).mean()
    loss.backward()

    expected = [arrays.get(f"logits_train_head{i}") for i in range(len(heads))]
    expected = [arrays["logits_train"]] if expected[0] is None else expected
    for head, reference in zip(heads, expected, strict=True):
        torch.testing.assert_close(head, torch.from_numpy(reference), atol=1e-9, rtol=0)
    assert abs(loss.item() - arrays["loss"].item()) <= 1e-9

    learned = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert None not in learned.values()
    grads = sf.to_official(model, learned)
    references = {k.removeprefix("grad/"): v for k, v in arrays.items() if k[:5] == "grad/"}
    assert set(grads) == set(references)
    floor = 1e-6 * max(reference[0] for reference in references.values())
    for key, reference in references.items():
        difference = (fingerprint(grads[key]) - torch.from_numpy(reference)).abs().max().item()
        assert difference <= 1e-7 * max(reference[0], floor), key


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eval_outputs_and_firing_rates(case: Case) -> None:
    model = build(case).eval()
    assert next(model.parameters()).dtype == torch.float64
    shapes = {key: shape for key, shape, *_ in case.facts["manifest"]}
    unlearned = case.facts["dead_parameters"] + case.facts["frozen_parameters"]
    dead = sum(math.prod(shapes[key]) for key in unlearned)
    assert sum(p.numel() for p in model.parameters()) + dead == case.facts["param_count"]
    x = case.input()
    with torch.no_grad():
        (logits,) = scores(model, model(x))
        alone = torch.cat([scores(model, model(x[:, i : i + 1]))[0] for i in range(x.shape[1])])
        rates = mean_outputs(model, x)
    torch.testing.assert_close(logits, case.array("logits"), atol=1e-9, rtol=0)
    torch.testing.assert_close(alone, case.array("logits_single"), atol=1e-9, rtol=0)
    expected = {k.removeprefix("firing/"): v for k, v in case.arrays.items() if k[:7] == "firing/"}
    # A neuron that the official code runs for nobody is declared dead, and may be none of ours.
    unread = {name for name in expected if _find(case.source)[0].reason_dead(name)}
    assert set(rates) == set(expected) - (unread - set(rates))
    for name, rate in rates.items():
        assert abs(rate.item() - expected[name].item()) <= 1e-9, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_step(case: Case) -> None:
    model = build(case)
    check_training_step(model, case, case.arrays)
    state = sf.to_official(model)
    keys = [key for key, *_ in case.facts["manifest"] if key in state]
    running = [state[k] for k in keys if k.endswith(("running_mean", "running_var"))]
    reference = case.array("running_stats")
    for row, tensor in zip(reference, running, strict=True):
        ours = fingerprint(tensor)
        torch.testing.assert_close(ours, row[: len(ours)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", DEFECTIVE, ids=lambda case: case.name)
def test_corrected_model_keeps_samples_apart(case: Case) -> None:
    arrays = {k.removeprefix("fixed/"): v for k, v in case.arrays.items() if k[:6] == "fixed/"}
    model = build(case, corrected=True).eval()
    with torch.no_grad():
        (logits,) = scores(model, model(case.input()))
    torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), atol=1e-9, rtol=0)
    torch.testing.assert_close(logits, case.array("logits_single"), atol=1e-9, rtol=0)
    check_training_step(model, case, arrays)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_round_trip_through_the_official_names(case: Case) -> None:
    state = case.state()
    model = build(case)
    back = sf.to_official(model)
    filled = sf.to_official(model, dead="zeros")
    assert back and set(back) <= set(state) == set(filled)
    assert set(case.facts["dead_parameters"]) <= set(state) - set(back)
    for key, array in state.items():
        assert filled[key].shape == array.shape, key
        if key in back:
            assert torch.equal(back[key], torch.from_numpy(array).to(back[key].dtype)), key
