"""The promise of `Trunk`: a fused twin can be made by walking a stage, without matching a graph.

The twin here is eager. Its step `add_norm_fire` stands for the kernel that does norm, residual sum
and neuron in one pass. Twin and readable stages share modules, so names and parameters are equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.layers import SDSA1, SDSA2, SDSA4, BatchNorm, Synapse, Trunk, drop_path
from spikeformers.models import Backbone, Stage
from spikeformers.neurons import Neuron
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


def add_norm_fire(
    y: Tensor,
    norm: BatchNorm,
    next_neuron: Neuron | None,
    residual: Tensor | None = None,
    rate: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Norm, add to the stream, fire: what one kernel does."""
    x = norm(y.flatten(0, 1)).unflatten(0, y.shape[:2])
    x = drop_path(x, rate) if rate else x
    x = x if residual is None else residual + x
    return x, None if next_neuron is None else next_neuron(x)


@contextmanager
def ending_before_the_norm(synapse: Synapse) -> Iterator[None]:
    """Let a synapse return what it weighs; its norm belongs to the fused step."""
    synapse.forward = lambda x: synapse.weigh(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    yield
    del synapse.forward


def last_synapse(module: nn.Module) -> Synapse:
    return [part for part in module.modules() if isinstance(part, Synapse)][-1]


class FusedStage(nn.Module):
    """A stage as a sequence of fused steps; it holds the very modules of the readable one."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        assert isinstance(stage.blocks, Trunk)
        self.embed, self.blocks = stage.embed, stage.blocks

    def forward(self, spikes: Tensor, after: Neuron | None) -> tuple[Tensor, Tensor | None]:
        """Take the spikes that drive `embed`; return the stream and the spikes of `after`."""
        branches = list(self.blocks.parts())
        rates = self.blocks.drop_path_rates
        following = [*(branch.neuron for branch in branches), after]
        y = self.embed.conv.weigh(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        x, spikes = add_norm_fire(y, self.embed.conv.norm, following[0])
        for branch, neuron, rate in zip(branches, following[1:], rates, strict=True):
            synapse = last_synapse(branch.fn)
            with ending_before_the_norm(synapse):
                y = branch.fn(spikes)
            x, spikes = add_norm_fire(y, synapse.norm, neuron, x, rate)
        return x, spikes


class FusedTwin(nn.Module):
    """All stages of a backbone, each handing its stream's spikes to the next."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.stages = nn.ModuleList(FusedStage(stage) for stage in model.stages)
        self.head = model.head

    def features(self, x: Tensor) -> list[Tensor]:
        following = [*(stage.embed.neuron for stage in self.stages[1:]), None]
        maps, spikes = [], x  # no neuron stands before the stem: it weighs the image
        for stage, neuron in zip(self.stages, following, strict=True):
            stream, spikes = stage(spikes, neuron)
            maps.append(stream)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])


def lively_model(**overrides: Any) -> Backbone:
    model = sf.create_model("meta_spikeformer_tiny", depths=(1, 2, 1, 2, 1), **overrides)
    for stage in model.stages:
        stage.blocks.drop_path_rates = [0.3] * len(stage.blocks.drop_path_rates)
    return enliven(model)


def train_twice(network: nn.Module, x: Tensor) -> dict[str, Any]:
    """Cotangents on every stage's map and on the scores, two forward passes, one backward pass."""
    torch.manual_seed(0)
    leaf = x.clone().requires_grad_()
    outputs = []
    for scale in (1.0, 0.7):
        maps = network.features(scale * leaf)
        outputs += [*maps, network.head(maps[-1])]
    sum((y * randn(*y.shape, seed=i)).sum() for i, y in enumerate(outputs)).backward()
    return dict(
        outputs=outputs, grad=leaf.grad, grads=gradients(network), statistics=statistics(network)
    )


@pytest.mark.parametrize("attention", [None, SDSA1, SDSA2, SDSA4])
def test_the_fused_twin_trains_like_the_readable_model(attention: Any) -> None:
    overrides = {} if attention is None else dict(attention=attention)
    x = randn(3, 2, 3, 48, 64, seed=1)
    model = lively_model(**overrides)
    expected = train_twice(model, x)
    assert_lively(spikes_of(model, lambda: model(x)))
    actual = train_twice(FusedTwin(lively_model(**overrides)), x)
    for what, tensors in expected.items():
        assert_same(actual[what], tensors)


def test_the_twin_has_the_same_parameters_names_and_neurons() -> None:
    model = lively_model()
    twin = FusedTwin(model)
    ours, theirs = dict(twin.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert neurons_of(twin) == neurons_of(model)


def test_the_twin_calls_every_neuron_with_equal_spikes_and_streams_alike() -> None:
    model = lively_model().eval()
    for stage in model.stages:
        stage.blocks.drop_path_rates = [0.0] * len(stage.blocks.drop_path_rates)
    twin, x = FusedTwin(model), randn(4, 2, 3, 48, 64, seed=1)
    with torch.no_grad():
        expected = spikes_of(model, lambda: model(x))
        actual = spikes_of(twin, lambda: twin(x))
        assert set(actual) == set(expected)
        for path, spikes in expected.items():
            assert torch.equal(actual[path], spikes), path
        y, state = sf.advance(twin, x[:1])
        rest, end = sf.advance(twin, x[1:], state)
        assert_same(torch.cat([y, rest]), model(x))
        assert_same(end, sf.advance(model, x)[1])


@pytest.mark.parametrize("part", ["mixer", "attn", "mlp"])
def test_every_body_ends_in_the_synapse_that_is_registered_last(part: str) -> None:
    for attention in ({}, dict(attention=SDSA1), dict(attention=SDSA2), dict(attention=SDSA4)):
        model = lively_model(**attention).eval()
        bodies = [
            block[part].fn for stage in model.stages for block in stage.blocks if part in block
        ]
        assert bodies
        for body in bodies:
            synapse = last_synapse(body)
            width = synapse.norm.num_features
            spikes = (randn(2, 1, width, 4, 4, seed=1) > 0).double()
            seen: list[Tensor] = []
            hook = synapse.register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(y))
            y = body(spikes)
            hook.remove()
            assert len(seen) == 1
            assert torch.equal(y, seen[0])
