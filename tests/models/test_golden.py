"""Each architecture equals the authors' implementation: outputs, rates, gradients, statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import spikeformers as sf
from spikeformers.neurons import Neuron
from spikeformers.types import Outputs
from tests.golden import Case, cases, fingerprint

CASES = cases("sdt_v2")


def build(case: Case) -> torch.nn.Module:
    return sf.from_official(case.state(), source=case.source, **case.facts["kwargs"])


def mean_outputs(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run the model and return the mean output of every neuron under the authors' names."""
    names, means = sf.official_names(model), {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, path=path: means.update({names[path]: output.mean()})
        )
        for path, module in model.named_modules()
        if isinstance(module, Neuron)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return means


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eval_outputs_and_firing_rates(case: Case) -> None:
    model = build(case).eval()
    assert next(model.parameters()).dtype == torch.float64
    assert sum(p.numel() for p in model.parameters()) == case.facts["param_count"]
    x = case.input()
    with torch.no_grad():
        logits = model.readout(model(x))
        alone = torch.cat([model.readout(model(x[:, i : i + 1])) for i in range(x.shape[1])])
        rates = mean_outputs(model, x)
    torch.testing.assert_close(logits, case.array("logits"), atol=1e-9, rtol=0)
    torch.testing.assert_close(alone, case.array("logits_single"), atol=1e-9, rtol=0)
    assert set(rates) == set(case.facts["neurons"])
    for name, rate in rates.items():
        assert abs(rate - case.array(f"firing/{name}")) <= 1e-9, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_step(case: Case) -> None:
    model = build(case).train()
    y = model(case.input())
    heads = [y.logits, *y.aux.values()] if isinstance(y, Outputs) else [y]
    heads = [model.readout(head) for head in heads]
    labels = torch.arange(len(heads[0])) % case.facts["classes"]
    loss = torch.stack([F.cross_entropy(head, labels) for head in heads]).mean()
    loss.backward()

    expected = [case.arrays.get(f"logits_train_head{i}") for i in range(len(heads))]
    expected = [case.arrays["logits_train"]] if expected[0] is None else expected
    for head, reference in zip(heads, expected, strict=True):
        torch.testing.assert_close(head, torch.from_numpy(reference), atol=1e-9, rtol=0)
    assert abs(loss.item() - case.array("loss").item()) <= 1e-9

    grads = sf.to_official(model, {n: p.grad for n, p in model.named_parameters()})
    references = {k.removeprefix("grad/"): v for k, v in case.arrays.items() if k[:5] == "grad/"}
    assert set(grads) == set(references)
    floor = 1e-6 * max(reference[0] for reference in references.values())
    for key, reference in references.items():
        difference = (fingerprint(grads[key]) - torch.from_numpy(reference)).abs().max().item()
        assert difference <= 1e-7 * max(reference[0], floor), key

    state = sf.to_official(model)
    keys = [key for key, *_ in case.facts["manifest"]]
    running = [state[k] for k in keys if k.endswith(("running_mean", "running_var"))]
    reference = case.array("running_stats")
    for row, tensor in zip(reference, running, strict=True):
        ours = fingerprint(tensor)
        torch.testing.assert_close(ours, row[: len(ours)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
def test_round_trip_through_the_official_names(case: Case) -> None:
    state = case.state()
    back = sf.to_official(build(case))
    assert list(back) != [] and set(back) == set(state)
    for key, array in state.items():
        assert torch.equal(back[key], torch.from_numpy(array).to(back[key].dtype)), key
