"""The accelerated twin computes what the readable model does, and keeps less for its gradient."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import Branch, Chain, Conv, ConvBN, LinearBN, RepConv, Trunk, sew
from spikeformers.models import Backbone
from spikeformers.neurons import IF, LIF, PLIF
from spikeformers.transform import accelerate
from spikeformers.transform._lazy import SpikeMap
from spikeformers.transform._maps import Recipe
from spikeformers.transform._weigh import Kernel, MapConv
from spikeformers.transform.accelerate import let_add, which_add
from spikeformers.types import Outputs
from tests.helpers import (
    assert_same,
    enliven,
    gradients,
    neurons_of,
    randn,
    spikes_of,
    statistics,
)

TINIES = sf.list_models("*_tiny")
both_memories = pytest.mark.parametrize("memory", ["fast", "low"])


def images(model: Backbone) -> Tensor:
    height, width = model.image_size or (32, 48)
    return randn(3, 2, model.in_channels, height, width, seed=1)


def scores(y: Any) -> Tensor:
    if isinstance(y, list):
        return torch.cat([m.flatten(-2) for m in y], -1)
    return y.logits if isinstance(y, Outputs) else y


def step(model: nn.Module, x: Tensor) -> Tensor:
    """Take a forward and a backward pass; return the scores."""
    torch.manual_seed(0)
    y = model(x)
    further = y.aux.values() if isinstance(y, Outputs) else []
    found = [scores(y), *further]
    sum((part * randn(*part.shape, seed=2)).sum() for part in found).backward()
    return found[0].detach()


def assert_same_step(model: nn.Module, x: Tensor, memory: str = "fast") -> None:
    """Scores, gradients and running statistics of a training step agree."""
    other = copy.deepcopy(model)
    expected, actual = step(model, x), step(accelerate(other, memory), x)
    assert_same(actual, expected)
    sizes = [grad.abs().max().item() for grad in gradients(model).values()]
    for name, grad in gradients(model).items():
        torch.testing.assert_close(
            gradients(other)[name], grad, atol=1e-9 * max(1, *sizes), rtol=0, msg=name
        )
    assert_same(statistics(other), statistics(model))


@both_memories
@pytest.mark.parametrize("name", TINIES)
def test_a_training_step_of_every_architecture_is_the_same(name: str, memory: str) -> None:
    model = enliven(sf.create_model(name)).train()
    x = images(model)
    rates = [s.count_nonzero() / s.numel() for s in spikes_of(model, lambda: model(x)).values()]
    assert sum(0.01 < rate < 0.99 for rate in rates) > len(rates) / 2
    assert_same_step(model, x, memory)


@pytest.mark.parametrize("name", TINIES)
def test_evaluation_is_the_same(name: str) -> None:
    model = enliven(sf.create_model(name)).eval()
    x = images(model)
    with torch.no_grad():
        assert_same(scores(accelerate(model)(x)), scores(model(x)))


@both_memories
@pytest.mark.parametrize(
    "neuron",
    [
        LIF(tau=3.0, v_reset=None),
        LIF(v_reset=-0.2, v_threshold=0.7, surrogate="atan"),
        LIF(decay_input=False, detach_reset=False, surrogate="tanh"),
        IF(strict=True, surrogate="rectangle"),
        PLIF(),
    ],
)
def test_every_neuron_fires_the_same(neuron: LIF, memory: str) -> None:
    def branch() -> Branch:
        first = copy.deepcopy(neuron)
        return Branch(first, Chain(LinearBN(70, 70), copy.deepcopy(neuron), ConvBN(70, 70, 3)))

    trunk = Trunk([dict(a=branch(), b=branch())])
    model = enliven(nn.Sequential(ConvBN(3, 70, 3, stride=2), trunk)).train()
    assert_same_step(model, randn(4, 2, 3, 9, 11, seed=3), memory)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(1, 1, None), (3, 2, None), (7, 2, 3), (2, 2, 0)]
)
def test_every_convolution_of_spikes_is_the_same(
    kernel_size: int, stride: int, padding: int | None
) -> None:
    conv = ConvBN(5, 6, kernel_size, stride, bias=True, padding=padding)
    model = enliven(Chain(LIF(), conv, LIF(), LinearBN(6, 3, bias=True))).train()
    assert_same_step(model, 2 * randn(2, 3, 5, 9, 12, seed=3))


@both_memories
def test_dropped_paths_and_other_shortcuts_are_the_same(memory: str) -> None:
    def body() -> Chain:
        return Chain(RepConv(6, 6), LIF())

    blocks = [dict(a=Branch(LIF(), RepConv(6, 6)), b=Branch(LIF(), ConvBN(6, 6, 3)))] * 2
    model = nn.Sequential(
        ConvBN(3, 6, 3), Trunk(blocks, drop_path=0.4), LIF(), sew(body()), sew(body(), "iand")
    )
    assert_same_step(enliven(model).train(), randn(2, 3, 3, 8, 9, seed=3), memory)


def test_a_trunk_that_recomputes_is_the_same() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).train()
    for trunk in (m for m in model.modules() if isinstance(m, Trunk)):
        trunk.recomputes = True
    assert_same_step(model, images(model))


@both_memories
def test_a_static_image_is_convolved_once(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    convolve = MapConv.apply

    def note(recipe: Recipe, x: Tensor, *others: Any) -> Tensor:
        seen.append(len(x))
        return convolve(recipe, x, *others)

    monkeypatch.setattr(MapConv, "apply", note)
    image = randn(2, 3, 7, 8, seed=3)
    for synapse in (RepConv(3, 6), ConvBN(3, 6, 3, bias=True)):
        model = enliven(nn.Sequential(synapse, LIF(), ConvBN(6, 2, 1))).train()
        assert_same_step(model, sf.encode.direct(image, 4), memory)
    assert seen == [1, 1]
    image.requires_grad_()
    (expected,), (actual,) = (
        torch.autograd.grad(net(sf.encode.direct(image, 4)).square().sum(), image)
        for net in (model.eval(), accelerate(model, memory))
    )
    assert_same(actual, expected)


def test_norms_that_do_not_learn_their_statistics_stay_as_they_are() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    assert_same_step(model, images(model))


@both_memories
def test_norms_may_weigh_all_batches_alike_or_rest_one_by_one(memory: str) -> None:
    model = enliven(nn.Sequential(ConvBN(3, 6, 3, bias=True), LIF(), RepConv(6, 6), LIF())).train()
    for norm in (model[0].norm, model[2].inner_norm):
        norm.momentum = None
    model[2].norm.eval()
    model(randn(3, 2, 3, 8, 9, seed=3))
    assert_same_step(model, randn(3, 2, 3, 8, 9, seed=4), memory)


def test_frozen_norms_get_no_gradient() -> None:
    model = enliven(nn.Sequential(ConvBN(3, 6, 3), LIF(), ConvBN(6, 6, 3))).train()
    model[0].norm.requires_grad_(False)
    model[2].norm.weight.requires_grad_(False)
    step(accelerate(model), randn(3, 2, 3, 8, 9))
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == ["0.norm.weight", "0.norm.bias", "2.norm.weight"]


def test_a_model_in_bfloat16_is_evaluated() -> None:
    model = enliven(nn.Sequential(ConvBN(3, 8, 3), LIF())).to(torch.bfloat16).eval()
    x = randn(2, 3, 3, 8, 9, seed=3, dtype=torch.bfloat16)
    with torch.no_grad():
        differ = scores(accelerate(model)(x)) != model(x)
    assert differ.float().mean() < 0.02


def test_two_passes_may_come_before_one_gradient() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).train()
    x, other = images(model), copy.deepcopy(model)
    for net, run in ((model, model), (other, accelerate(other))):
        y = run(x) + run(x.flip(-1))
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
        assert net.head is not None
    sizes = [grad.abs().max().item() for grad in gradients(model).values()]
    for name, grad in gradients(model).items():
        torch.testing.assert_close(
            gradients(other)[name], grad, atol=1e-9 * max(sizes), rtol=0, msg=name
        )


def test_the_twin_shares_parameters_names_and_hooks() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).train()
    twin = accelerate(model)
    assert [*twin.state_dict()] == [*model.state_dict()]
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    x, other = images(model), copy.deepcopy(model)
    expected = spikes_of(other, lambda: other(x))
    # The hooks are put on the readable model while the twin runs.
    actual = spikes_of(model, lambda: twin(x))
    assert all(type(spikes) is Tensor for spikes in actual.values())
    assert_same(actual, expected)


def test_the_first_batch_of_training_decides_which_synapses_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways: list[bool] = []
    convolve = SpikeMap.convolve

    def note(self: SpikeMap, weight: Tensor, kernel: Kernel, is_sparse: bool) -> Any:
        ways.append(is_sparse)
        return convolve(self, weight, kernel, is_sparse)

    monkeypatch.setattr(SpikeMap, "convolve", note)
    depthwise = Conv(6, 6, 3, padding=1, groups=6, bias=False)
    model = nn.Sequential(LIF(), ConvBN(6, 6, 3, padding=1), LIF(), depthwise)
    few, many = randn(2, 3, 6, 7, 8), torch.full((2, 3, 6, 7, 8), 9.0, dtype=torch.float64)
    twin = accelerate(model.double())
    twin.eval()(many)
    assert which_add(twin) == {} and ways == [False, False]
    twin.train()(few)
    assert which_add(twin) == {"1": True}  # a depthwise one never adds
    twin(many)
    twin.eval()(many)
    assert ways[2:] == [True, False] * 3
    other = accelerate(model)
    let_add(other, {"1": False})
    expected, actual = twin.train()(few), other.train()(few)
    assert which_add(other) == {"1": False} and ways[8:] == [True, False, False, False]
    assert_same(actual, expected)


def test_a_stream_runs_on_as_in_the_model() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).eval()
    x = images(model)
    with torch.no_grad():
        first, state = sf.advance(accelerate(model), x[:1])
        rest, _ = sf.advance(accelerate(model), x[1:], state)
        assert_same(torch.cat([first, rest]), model(x))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps between forward and backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = scores(model(x))  # noqa: F841 - what is kept must stay alive to be counted once
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass() -> None:
    model = sf.create_model("meta_spikeformer_xs32", norm_gain=2.5).train()
    x = randn(4, 2, 3, 32, 32, dtype=torch.float32)
    readable = kept_bytes(copy.deepcopy(model), x)
    fast, low = (kept_bytes(accelerate(copy.deepcopy(model), m), x) for m in ("fast", "low"))
    assert fast < readable / 2.5
    assert low < readable / 6


def test_float32_stays_close() -> None:
    model = enliven(sf.create_model("meta_spikeformer_xs32")).float().train()
    x = randn(4, 2, 3, 32, 32, dtype=torch.float32)
    other = copy.deepcopy(model)
    expected, actual = step(model, x), step(accelerate(other), x)
    assert (actual - expected).norm() < 1e-4 * expected.norm()
    # In front of a norm some gradients are zero but for rounding.
    largest = max(grad.norm() for grad in gradients(model).values())
    for name, grad in gradients(model).items():
        assert (gradients(other)[name] - grad).norm() < 1e-4 * largest, name


def test_a_training_step_under_autocast_is_as_close_to_float32_as_the_models_own() -> None:
    model = enliven(nn.Sequential(ConvBN(3, 70, 3), LIF(), ConvBN(70, 8, 3))).float().train()
    x = randn(2, 8, 3, 16, 16, dtype=torch.float32)
    own, twins = copy.deepcopy(model), copy.deepcopy(model)
    step(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        step(own, x), step(accelerate(twins), x)
    for name, grad in gradients(model).items():
        own_error = (gradients(own)[name] - grad).norm()
        assert (gradients(twins)[name] - grad).norm() < 1.5 * own_error + 1e-3 * grad.norm(), name


def test_in_bfloat16_spikes_differ_at_the_threshold_only() -> None:
    """The readable model rounds the norm's output, the twin only what it stores."""
    model = enliven(nn.Sequential(ConvBN(3, 70, 3), LIF())).float().train()
    x = randn(1, 8, 3, 16, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        current = copy.deepcopy(model)[0](x)
        expected, actual = model(x), scores(accelerate(model)(x))
    differ = expected != actual
    h = current.float() / 2
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert 0 < differ.sum() < 0.01 * differ.numel()
    assert ((h - 1).abs() <= 2**-8)[differ].all()


def test_bad_memory_is_refused() -> None:
    with pytest.raises(InputError, match="memory='tiny': expected 'fast' or 'low'"):
        accelerate(nn.Identity(), "tiny")


def test_a_gradient_of_the_gradient_is_refused() -> None:
    model = enliven(nn.Sequential(ConvBN(3, 4, 3), LIF(), LinearBN(4, 2))).train()
    y = scores(accelerate(model)(randn(2, 2, 3, 5, 5)))
    weight = next(model.parameters())
    (grad,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.compile
def test_compiled_and_exported_it_is_the_readable_model() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny")).eval()
    x = images(model)
    exported = torch.export.export(accelerate(model), (x,))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "spikeformers.lif.default" in names
    assert not any("norm_lif" in name for name in names)
    assert_same(exported.module()(x), model(x))


def test_all_neurons_have_twins() -> None:
    model = sf.create_model("meta_spikeformer_tiny")
    for path, neuron in neurons_of(accelerate(model)).items():
        assert isinstance(neuron, LIF) and type(neuron) is not LIF, path
