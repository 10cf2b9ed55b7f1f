"""Streaming: any chunking equals one pass, and the state is the caller's alone."""

import io

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import Branch, Chain, ConvBN, Linear, Trunk
from spikeformers.neurons import IF, LIF, PLIF, AcrossBatch, LearnedThresholdLIF, Stateful
from spikeformers.streaming import Stream, advance, bind
from spikeformers.types import State
from tests.helpers import (
    assert_lively,
    assert_same,
    compositions,
    enliven,
    neurons_of,
    randn,
    spikes_of,
)

TINY = "meta_spikeformer_tiny"


def small() -> nn.Module:
    """Four kinds of neurons in float64, no batch norm."""
    return enliven(
        Chain(
            Trunk(
                [
                    dict(a=Branch(LIF(), Linear(3, 3)), b=Branch(IF(v_reset=None), Linear(3, 3))),
                    dict(a=Branch(PLIF(), Linear(3, 3))),
                ]
            ),
            neuron=LearnedThresholdLIF(v_threshold=0.5),
            out=Linear(3, 2),
        )
    )


def in_chunks(model: nn.Module, x: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, State]:
    state, parts = None, []
    for part in x.split(lengths):
        y, state = advance(model, part, state)
        parts.append(y)
    assert state is not None
    return torch.cat(parts), state


def unbound(model: nn.Module) -> bool:
    return all(m.carried is None for m in model.modules() if isinstance(m, Stateful))


def test_any_chunking_of_a_small_model_equals_one_pass() -> None:
    model, x = small(), 3 * randn(5, 2, 3, seed=1)
    assert_lively(spikes_of(model, lambda: model(x)))
    expected, (whole, state) = model(x), advance(model, x)
    assert torch.equal(whole, expected)
    for lengths in compositions(5):
        y, end = in_chunks(model, x, lengths)
        assert_same(y, expected)
        assert_same(end, state)


def test_any_chunking_of_a_whole_model_equals_one_pass() -> None:
    model = enliven(sf.create_model(TINY)).eval()
    x = randn(4, 2, 3, 32, 32, seed=2)
    with torch.no_grad():
        assert_lively(spikes_of(model, lambda: model(x)))
        expected, (_, state) = model(x), advance(model, x)
        assert set(state) == {f"{path}.membrane" for path in neurons_of(model)}
        for lengths in compositions(4):
            y, end = in_chunks(model, x, lengths)
            assert_same(y, expected)
            assert_same(end, state)


def test_the_state_is_not_changed_and_a_chunk_may_run_again() -> None:
    model, x = small(), 3 * randn(4, 9, 3, seed=1)
    _, state = advance(model, x)
    kept = {key: tensor.clone() for key, tensor in state.items()}
    first = advance(model, x, state)
    second = advance(model, x, state)
    assert_same(state, kept)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], model(x)), "the state does matter"


def test_interleaved_streams_never_touch() -> None:
    model = small()
    inputs = [3 * randn(6, batch, 3, seed=batch) for batch in (1, 2, 5)]
    streams = [Stream(model) for _ in inputs]
    parts: list[list[Tensor]] = [[] for _ in inputs]
    for t in range(0, 6, 2):
        for stream, x, outputs in zip(streams, inputs, parts, strict=True):
            outputs.append(stream(x[t : t + 2]))
            model(randn(3, 4, 3, seed=t))  # an ordinary call in between
    for x, outputs in zip(inputs, parts, strict=True):
        assert_same(torch.cat(outputs), model(x))


def test_gradients_flow_through_the_state() -> None:
    model, x = small(), 3 * randn(5, 2, 3, seed=1)
    cotangent = randn(5, 2, 2, seed=7)
    results = []
    for run in (lambda x: model(x), lambda x: in_chunks(model, x, (2, 1, 2))[0]):
        leaf = x.clone().requires_grad_()
        leaves = [leaf, *model.parameters()]
        results.append(torch.autograd.grad((run(leaf) * cotangent).sum(), leaves))
    assert_same(*results)
    leaf = x[:2].clone().requires_grad_()
    state = advance(model, leaf)[1]
    (grad,) = torch.autograd.grad(advance(model, x[2:], state)[0].sum(), leaf)
    assert grad.abs().sum() > 0


def test_a_detached_state_cuts_the_gradient() -> None:
    model = small()
    leaf = (3 * randn(2, 2, 3, seed=1)).requires_grad_()
    state = {key: tensor.detach() for key, tensor in advance(model, leaf)[1].items()}
    y, _ = advance(model, 3 * randn(2, 2, 3, seed=2), state)
    assert torch.autograd.grad(y.sum(), leaf, allow_unused=True) == (None,)


def test_a_stream_survives_saving() -> None:
    model, x = small(), 3 * randn(4, 2, 3, seed=1)
    _, state = advance(model, x[:2])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    restored = torch.load(file, weights_only=True)
    assert_same(advance(model, x[2:], restored)[0], model(x)[2:])


def test_folded_models_stream_too() -> None:
    model = enliven(sf.create_model(TINY)).eval()
    x = randn(3, 1, 3, 32, 32, seed=2)
    with torch.no_grad():
        y, _ = in_chunks(sf.fold(model), x, (1, 2))
        assert_same(y, model(x))


def test_batch_norm_in_training_mode_is_refused_by_name() -> None:
    model = Chain(conv=ConvBN(3, 3, 1), neuron=LIF())
    with pytest.raises(InputError, match=r"'conv\.norm' is in training mode.*eval\(\)"):
        advance(model, torch.zeros(2, 1, 3, 4, 4))
    plain = nn.Sequential(nn.BatchNorm1d(3), LIF())
    with pytest.raises(InputError, match="training mode"):
        advance(plain, torch.zeros(2, 3, 3))
    advance(model.eval(), torch.zeros(2, 1, 3, 4, 4))


def test_neurons_that_mix_samples_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'neuron' integrates across the batch"):
        advance(Chain(neuron=AcrossBatch(LIF())), torch.zeros(2, 1, 3))


@pytest.mark.parametrize(
    "key", ["head.neuron.membrane", "membrane", "neuron.neuron.membrane", "out.membrane"]
)
def test_a_state_of_another_model_is_refused(key: str) -> None:
    model = small()
    with pytest.raises(InputError, match=f"'{key}', which this model does not"):
        advance(model, torch.zeros(1, 1, 3).double(), {key: torch.zeros(1, 3).double()})
    assert unbound(model)


def test_a_state_under_another_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"neuron\.voltage"):
        advance(small(), torch.zeros(1, 1, 3).double(), {"neuron.voltage": torch.zeros(1, 3)})


@pytest.mark.unchecked
def test_a_state_of_another_batch_is_refused() -> None:
    model = small()
    _, state = advance(model, randn(1, 2, 3))
    with pytest.raises(InputError, match=r"v0 is torch\.float64 \[2, 3\]: expected .* \[4, 3\]"):
        advance(model, randn(1, 4, 3), state)
    assert unbound(model)


def test_a_neuron_that_runs_twice_is_refused() -> None:
    neuron = LIF()
    model = nn.Sequential(neuron, neuron)
    model(torch.zeros(2, 1, 3))
    with pytest.raises(InputError, match="ran twice in one forward pass"):
        advance(model, torch.zeros(2, 1, 3))
    assert unbound(model)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"broken layer got {len(x)} steps")


def test_nothing_stays_bound_after_an_exception() -> None:
    model = nn.Sequential(LIF(), Failing())
    with pytest.raises(RuntimeError, match="broken layer got 2 steps"):
        advance(model, torch.ones(2, 1, 3))
    assert unbound(model)
    model[1] = nn.Identity()
    assert torch.equal(model(3 * torch.ones(1, 1, 3)), torch.ones(1, 1, 3))


def test_bind_yields_the_state_after_the_block() -> None:
    model, x = small(), 3 * randn(2, 2, 3, seed=1)
    with bind(model, None) as after:
        assert not unbound(model)
        model(x)
    assert unbound(model)
    assert_same(after, advance(model, x)[1])


def test_recomputed_branches_have_the_same_gradients_while_streaming() -> None:
    model, x = small(), 3 * randn(4, 2, 3, seed=1)
    state = {key: t.detach() for key, t in advance(model, x[:2])[1].items()}
    results = []
    for recomputes in (False, True):
        model[0].recomputes = recomputes
        leaf = x[2:].clone().requires_grad_()
        results.append(torch.autograd.grad(advance(model, leaf, state)[0].square().sum(), leaf))
    assert_same(*results)


class Advance(nn.Module):
    """`advance` as a module, to export it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return advance(self.model, x, state)


MODELS = {
    "small": (small, (2, 3)),
    "whole": (lambda: enliven(sf.create_model(TINY)), (2, 3, 32, 32)),
}


@pytest.mark.compile
@pytest.mark.parametrize("name", MODELS)
def test_the_streaming_model_exports_as_a_pure_function(name: str) -> None:
    make, step = MODELS[name]
    model, x = make().eval(), 3 * randn(6, *step, seed=1)
    state = {key: tensor.detach() for key, tensor in advance(model, x[:2])[1].items()}
    exported = torch.export.export(Advance(model), (x[2:4], state))
    nodes = [n for n in exported.graph.nodes if n.target is torch.ops.spikeformers.lif.default]
    assert len(nodes) == len(neurons_of(model))
    assert unbound(model)
    run = exported.module()
    for part in (x[2:4], x[4:]):
        expected = advance(model, part, state)
        assert_same(run(part, state), expected)
        state = {key: tensor.detach() for key, tensor in expected[1].items()}
