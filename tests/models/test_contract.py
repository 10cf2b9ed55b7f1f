"""What every registered architecture promises, held by its `tiny` variant."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import DetectionHead
from spikeformers.models import Backbone
from spikeformers.types import Outputs
from tests.helpers import (
    assert_lively,
    assert_same,
    enliven,
    gradients,
    neurons_of,
    randn,
    spikes_of,
    statistics,
)

TINIES = sf.list_models("*_tiny")

pytestmark = pytest.mark.parametrize("name", TINIES)


@cache
def only_size(name: str) -> tuple[int, int] | None:
    with torch.device("meta"):
        return sf.create_model(name).image_size


def images(name: str, steps: int = 3, batch: int = 2, height: int = 48, width: int = 64) -> Tensor:
    """Return images of this size, or of the only one that the model takes."""
    height, width = only_size(name) or (height, width)
    return randn(steps, batch, 3, height, width, seed=1)


def lively(name: str, **overrides: Any) -> Backbone:
    return enliven(sf.create_model(name, **overrides))


def scores(y: Tensor | Outputs | list[Tensor]) -> Tensor:
    """Return one tensor `[T, B, K]`; a detector's maps become `[T, B, K, N]` for all N cells."""
    if isinstance(y, list):
        return torch.cat([m.flatten(-2) for m in y], -1)
    return y.logits if isinstance(y, Outputs) else y


def width(model: Backbone, classes: int) -> int:
    """Return how many scores there are: a detector scores four sides of a box as well."""
    return classes + 4 * sum(m.bins for m in model.modules() if isinstance(m, DetectionHead))


def loss_of(y: Tensor | Outputs | list[Tensor]) -> Tensor:
    """Return a scalar that every output has a random part in."""
    parts = [y.logits, *y.aux.values()] if isinstance(y, Outputs) else [scores(y)]
    return sum((part * randn(*part.shape, seed=5).to(part.dtype)).sum() for part in parts)


def refuses_a_graph(name: str) -> bool:
    """Return whether the data decides what runs; then exporting has to say so."""
    model, x = lively(name).eval(), images(name, 2)
    if not model.has_fixed_graph:
        with pytest.raises(InputError, match="no fixed graph"):
            torch.export.export(model, (x,))
    return not model.has_fixed_graph


def test_every_neuron_fires_and_pauses(name: str) -> None:
    model, x = lively(name), images(name)
    for mode in (True, False):
        model.train(mode)
        assert_lively(spikes_of(model, lambda: model(x)))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (37, 61)], ids=str)
def test_forward_and_backward(name: str, size: tuple[int, int], steps: int) -> None:
    model, x = sf.create_model(name), images(name, steps, 2, *size).float().requires_grad_()
    assert model.training
    y = model(x)
    assert scores(y).shape[:3] == (steps, 2, width(model, 10))
    loss_of(y).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    y = model.eval()(x.detach())
    assert isinstance(y, Tensor | list)
    assert torch.equal(scores(model.readout(y)), scores(y).mean(0))


def test_no_parameter_is_dead(name: str) -> None:
    model = lively(name)
    loss_of(model(images(name))).backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    # A bias in front of a norm, or a norm in front of another, has no effect, and no mean of spikes
    # reaches their own height; all others do.
    silent = {n for n, grad in gradients(model).items() if grad.abs().max() < 1e-12}
    without_effect = (".bias", "inner_norm.weight", "pooled_neuron.v_threshold")
    absorbed = {n for n in silent if n.endswith(without_effect)}
    assert silent == absorbed


def test_samples_do_not_see_each_other(name: str) -> None:
    model, x = lively(name).eval(), images(name, batch=4)
    with torch.no_grad():
        y = scores(model(x))
        order = torch.tensor([2, 0, 3, 1])
        assert_same(scores(model(x[:, order])), y[:, order])
        for batch in (1, 3):
            assert_same(scores(model(x[:, :batch])), y[:, :batch])
    assert (y[:, 0] - y[:, 1]).abs().max() > 1e-3, "samples differ"


def test_the_past_does_not_see_the_future(name: str) -> None:
    model, x = lively(name).eval(), images(name, 4)
    with torch.no_grad():
        y = scores(model(x))
        assert_same(scores(model(x[:2])), y[:2])
        changed = torch.cat([-x[:1], x[1:]])
        carries = (scores(model(changed))[1:] - y[1:]).abs().max() > 1e-3
    # Only a membrane carries the past, and some neurons have none.
    assert carries == any(neuron.remembers for neuron in neurons_of(model).values())


def test_calls_leave_no_residue(name: str) -> None:
    model, x = lively(name).eval(), images(name)
    with torch.no_grad():
        before, first = copy.deepcopy(model.state_dict()), scores(model(x))
        model(images(name, 1, 5, 32, 32))
        assert torch.equal(scores(model(x)), first)
    assert_same(dict(model.state_dict()), dict(before))


def test_features_have_the_promised_widths_and_strides(name: str) -> None:
    model, x = lively(name).eval(), images(name, height=64, width=96)
    maps = model.features(x)
    assert len(maps) == len(model.channels) == len(model.strides)
    for feature, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        sides = [side // stride for side in x.shape[3:]]
        assert feature.shape == (3, 2, channels, *sides)
    headless = sf.create_model(name, num_classes=None).double().eval()
    headless.load_state_dict({k: t for k, t in model.state_dict().items() if k[:5] != "head."})
    assert torch.equal(headless(x), maps[-1])


def test_takes_other_channels_and_classes(name: str) -> None:
    model = sf.create_model(name, in_channels=2, num_classes=7)
    y = model(images(name, 2, 2, 32, 32)[:, :, :2].float())
    assert scores(y).shape[:3] == (2, 2, width(model, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_trains_in_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    model = lively(name).to(dtype)
    y = model(images(name, 2).to(dtype))
    assert scores(y).dtype == dtype
    loss_of(y).backward()
    assert all(grad.dtype == dtype for grad in gradients(model).values())


def test_trains_under_autocast(name: str) -> None:
    model = lively(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images(name, 2).float())
    loss_of(y).backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.compile
@pytest.mark.slow
def test_compiles_in_one_graph_with_equal_gradients(name: str) -> None:
    if refuses_a_graph(name):
        return
    torch.compiler.reset()
    x, results = images(name, 2), []
    for wrap in (lambda m: m, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")):
        model = lively(name)
        y = wrap(model)(x)
        loss_of(y).backward()
        results.append((scores(y), gradients(model), statistics(model)))
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch
@pytest.mark.compile
@pytest.mark.slow
def test_inductor_gives_equal_scores(name: str) -> None:
    """Only the last stage and the head: the C++ compiler takes a minute for all."""
    if refuses_a_graph(name):
        return
    torch.compiler.reset()
    model, x = lively(name).eval(), images(name, 2)
    with torch.no_grad():
        *maps, _ = model.features(x)
        stream = [x, *maps][-1]

        def last(stream: Tensor) -> Tensor:
            return scores(model.read([*maps, model.stages[-1](stream)]))

        compiled = torch.compile(last, fullgraph=True)
        torch.testing.assert_close(compiled(stream), last(stream), atol=1e-6, rtol=0)


@pytest.mark.compile
def test_exports_with_one_node_per_neuron(name: str) -> None:
    if refuses_a_graph(name):
        return
    model, x = lively(name).eval(), images(name, 2)
    exported = torch.export.export(model, (x,))
    ops = torch.ops.spikeformers
    fire = (ops.lif.default, ops.ilif.default, ops.dsr.default)
    nodes = [n for n in exported.graph.nodes if n.target in fire]
    assert len(nodes) == len(neurons_of(model))
    with torch.no_grad():
        assert_same(scores(exported.module()(x)), scores(model(x)))


def test_folds_to_equal_scores_without_norms(name: str) -> None:
    model, x = lively(name).eval(), images(name)
    folded = sf.fold(model)
    with torch.no_grad():
        assert_same(scores(folded(x)), scores(model(x)))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert folded.config == model.config


def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x = lively(name).eval(), images(name, 2)
    sf.save_model(model, tmp_path / "model.safetensors")
    loaded = sf.load_model(tmp_path / "model.safetensors")
    assert not loaded.training
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(scores(loaded(x)), scores(model(x)))


def test_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = sf.create_model(name)
    assert {p.device.type for p in model.parameters()} == {"meta"}
