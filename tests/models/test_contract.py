"""What every registered architecture promises, held by its `tiny` variant."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
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


def images(steps: int = 3, batch: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return randn(steps, batch, 3, height, width, seed=1)


def lively(name: str, **overrides: Any) -> Backbone:
    return enliven(sf.create_model(name, **overrides))


def scores(y: Tensor | Outputs) -> Tensor:
    return y.logits if isinstance(y, Outputs) else y


def loss_of(y: Tensor | Outputs) -> Tensor:
    """Return a scalar that every output has a random part in."""
    parts = [y.logits, *y.aux.values()] if isinstance(y, Outputs) else [y]
    return sum((part * randn(*part.shape, seed=5).to(part.dtype)).sum() for part in parts)


def test_every_neuron_fires_and_pauses(name: str) -> None:
    model, x = lively(name), images()
    for mode in (True, False):
        model.train(mode)
        assert_lively(spikes_of(model, lambda: model(x)))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (37, 61)], ids=str)
def test_forward_and_backward(name: str, size: tuple[int, int], steps: int) -> None:
    model, x = sf.create_model(name), images(steps, 2, *size).float().requires_grad_()
    assert model.training
    y = model(x)
    assert scores(y).shape == (steps, 2, 10)
    loss_of(y).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    y = model.eval()(x.detach())
    assert isinstance(y, Tensor)
    assert torch.equal(model.readout(y), y.mean(0))


def test_no_parameter_is_dead(name: str) -> None:
    model = lively(name)
    loss_of(model(images())).backward()
    assert len(gradients(model)) == len(list(model.parameters()))
    # A bias in front of a norm, or a norm in front of another, has no effect; all others do.
    silent = {n for n, grad in gradients(model).items() if grad.abs().max() < 1e-12}
    absorbed = {n for n in silent if n.endswith((".bias", "inner_norm.weight"))}
    assert silent == absorbed


def test_samples_do_not_see_each_other(name: str) -> None:
    model, x = lively(name).eval(), images(batch=4)
    with torch.no_grad():
        y = model(x)
        order = torch.tensor([2, 0, 3, 1])
        assert_same(model(x[:, order]), y[:, order])
        for batch in (1, 3):
            assert_same(model(x[:, :batch]), y[:, :batch])
    assert (y[:, 0] - y[:, 1]).abs().max() > 1e-3, "samples differ"


def test_the_past_does_not_see_the_future(name: str) -> None:
    model, x = lively(name).eval(), images(4)
    with torch.no_grad():
        y = model(x)
        assert_same(model(x[:2]), y[:2])
        changed = torch.cat([-x[:1], x[1:]])
        assert (model(changed)[1:] - y[1:]).abs().max() > 1e-3, "the membrane carries the past"


def test_calls_leave_no_residue(name: str) -> None:
    model, x = lively(name).eval(), images()
    with torch.no_grad():
        before, first = copy.deepcopy(model.state_dict()), model(x)
        model(images(1, 5, 32, 32))
        assert torch.equal(model(x), first)
    assert_same(dict(model.state_dict()), dict(before))


def test_features_have_the_promised_widths_and_strides(name: str) -> None:
    model, x = lively(name).eval(), images()
    maps = model.features(x)
    assert len(maps) == len(model.channels) == len(model.strides)
    for feature, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert feature.shape == (3, 2, channels, 48 // stride, 64 // stride)
    headless = sf.create_model(name, num_classes=None).double().eval()
    headless.load_state_dict({k: t for k, t in model.state_dict().items() if k[:5] != "head."})
    assert torch.equal(headless(x), maps[-1])


def test_takes_other_channels_and_classes(name: str) -> None:
    model = sf.create_model(name, in_channels=2, num_classes=7)
    assert scores(model(torch.zeros(2, 2, 2, 32, 32))).shape == (2, 2, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_trains_in_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    model = lively(name).to(dtype)
    y = model(images(2).to(dtype))
    assert scores(y).dtype == dtype
    loss_of(y).backward()
    assert all(grad.dtype == dtype for grad in gradients(model).values())


def test_trains_under_autocast(name: str) -> None:
    model = lively(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images(2).float())
    loss_of(y).backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.compile
@pytest.mark.slow
def test_compiles_in_one_graph_with_equal_gradients(name: str) -> None:
    torch.compiler.reset()
    x, results = images(2), []
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
    torch.compiler.reset()
    model = lively(name).eval()
    with torch.no_grad():
        stream = model.features(images(2))[-2]
        last = nn.Sequential(model.stages[-1], model.head)
        compiled = torch.compile(last, fullgraph=True)
        torch.testing.assert_close(compiled(stream), last(stream), atol=1e-6, rtol=0)


@pytest.mark.compile
def test_exports_with_one_node_per_neuron(name: str) -> None:
    model, x = lively(name).eval(), images(2)
    exported = torch.export.export(model, (x,))
    nodes = [n for n in exported.graph.nodes if n.target is torch.ops.spikeformers.lif.default]
    assert len(nodes) == len(neurons_of(model))
    with torch.no_grad():
        assert_same(exported.module()(x), model(x))


def test_folds_to_equal_scores_without_norms(name: str) -> None:
    model, x = lively(name).eval(), images()
    folded = sf.fold(model)
    with torch.no_grad():
        assert_same(folded(x), model(x))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert folded.config == model.config


def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x = lively(name).eval(), images(2)
    sf.save_model(model, tmp_path / "model.safetensors")
    loaded = sf.load_model(tmp_path / "model.safetensors")
    assert not loaded.training
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = sf.create_model(name)
    assert {p.device.type for p in model.parameters()} == {"meta"}
