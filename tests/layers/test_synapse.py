"""Synaptic layers: what they compute, and that their folded form computes the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import (
    SDSA1,
    SDSA2,
    SDSA3,
    SDSA4,
    BatchNorm,
    Chain,
    Conv,
    ConvBN,
    Linear,
    LinearBN,
    NormFirstRepConv,
    PerStep,
    RepConv,
    SepConv,
    Synapse,
    fold,
    once,
)
from spikeformers.models.meta_spikeformer import sew_shortcut, vanilla_shortcut
from spikeformers.neurons import LIF, LearnedThresholdLIF
from tests.helpers import (
    assert_lively,
    assert_same,
    enliven,
    gradients,
    randn,
    random_spikes,
    spikes_of,
    statistics,
)

SIZES = [(1, 1), (1, 5), (2, 3), (5, 7), (8, 8)]


def published_rep_conv(layer: RepConv, x: Tensor) -> Tensor:
    """Compute what the official code computes: norm, then border values put in by hand."""
    norm = layer.border_norm
    y = norm(F.conv2d(x.flatten(0, 1), layer.pointwise1.weight))
    border = norm.bias.detach() - norm.running_mean * norm.weight.detach() / torch.sqrt(
        norm.running_var + norm.eps
    )
    padded = border.clone().view(1, -1, 1, 1).repeat(len(y), 1, y.shape[2] + 2, y.shape[3] + 2)
    padded[:, :, 1:-1, 1:-1] = y
    y = F.conv2d(padded, layer.depthwise.weight, groups=y.shape[1])
    y = layer.norm(layer.inner_norm(F.conv2d(y, layer.pointwise2.weight)))
    return y.unflatten(0, x.shape[:2])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rep_conv_equals_the_published_computation(size: tuple[int, int], training: bool) -> None:
    x = random_spikes(3, 2, 4, *size, seed=1)
    results = []
    for run in (RepConv.forward, published_rep_conv):
        layer = enliven(RepConv(4, 3)).train(training)
        leaf = x.clone().requires_grad_()
        outputs = [run(layer, leaf), run(layer, leaf**2)]
        sum((y * randn(*y.shape, seed=5)).sum() for y in outputs).backward()
        results.append((outputs, leaf.grad, gradients(layer), statistics(layer)))
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


def test_the_border_of_rep_conv_comes_from_running_statistics_without_gradient() -> None:
    layer = enliven(RepConv(2, 2))
    frame = layer.border_norm.surround(torch.zeros(1, 2, 3, 3).double())
    outside = layer.border_norm.affine_map()[1]
    assert_same(frame[0, :, 0, 0], outside.detach())
    assert torch.equal(frame[..., 1:-1, 1:-1], torch.zeros(1, 2, 3, 3).double())
    assert not frame.requires_grad


SYNAPSES: dict[str, Callable[[], Synapse]] = {
    "RepConv": lambda: RepConv(4, 4),
    "RepConv, widening": lambda: RepConv(4, 6),
    "RepConv, narrowing": lambda: RepConv(4, 1),
    "NormFirstRepConv, narrowing": lambda: NormFirstRepConv(4, 3),
    "1x1": lambda: ConvBN(4, 5, 1),
    "3x3": lambda: ConvBN(4, 5, 3),
    "3x3, stride 2": lambda: ConvBN(4, 5, 3, stride=2, bias=True),
    "3x3, stride 2, padding 2": lambda: ConvBN(4, 5, 3, stride=2, padding=2),
    "7x7, depthwise": lambda: ConvBN(4, 4, 7, groups=4),
    "5x5, grouped, stride 3": lambda: ConvBN(4, 6, 5, stride=3, groups=2, bias=True),
    "linear": lambda: LinearBN(4, 5),
    "linear with bias": lambda: LinearBN(4, 5, bias=True),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", SYNAPSES.values(), ids=SYNAPSES)
def test_a_folded_synapse_is_one_map_and_equal_everywhere(
    make: Callable[[], Synapse], size: tuple[int, int]
) -> None:
    layer = enliven(make()).eval()
    x = randn(3, 2, 4, *size, seed=1)
    folded = fold(layer)
    assert isinstance(folded, Conv | Linear)
    assert list(folded.state_dict()) == ["weight", "bias"]
    assert_same(folded(x), layer(x))


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 2, 4, 6), (3, 2, 4, 5, 7)], ids=str)
def test_linear_bn_is_a_matrix_product_at_every_position(shape: tuple[int, ...]) -> None:
    layer, x = enliven(LinearBN(4, 5, bias=True)), randn(*shape, seed=1)
    product = (x.movedim(2, -1) @ layer.linear.weight.T + layer.linear.bias).movedim(-1, 2)
    axes = [axis for axis in range(len(shape)) if axis != 2]
    view = [1, 1, 5, *[1] * (len(shape) - 3)]
    var, mean = torch.var_mean(product, axes, correction=0, keepdim=True)
    normed = (product - mean) / torch.sqrt(var + layer.norm.eps)
    expected = normed * layer.norm.weight.view(view) + layer.norm.bias.view(view)
    assert_same(layer(x), expected)
    layer.eval()
    assert_same(fold(layer)(x), layer(x))


@pytest.mark.parametrize("make", SYNAPSES.values(), ids=SYNAPSES)
def test_a_synapse_is_its_norm_of_what_it_weighs(make: Callable[[], Synapse]) -> None:
    layer, x = enliven(make()).eval(), randn(3, 2, 4, 5, 7, seed=1)
    expected = layer.norm(layer.weigh(x.flatten(0, 1))).unflatten(0, (3, 2))
    assert_same(layer(x), expected)


def make_dyadic(module: nn.Module) -> nn.Module:
    """Give weights of few bits and norms of integer gain, so that every sum is exact."""

    def quarters(*shape: int, seed: int) -> Tensor:
        return (2 * randn(*shape, seed=seed)).round().clamp(-3, 3) / 4

    with torch.no_grad():
        for seed, part in enumerate(module.modules()):
            if isinstance(part, BatchNorm):
                part.eps = 2.0**-10
                part.running_var.fill_(1 - part.eps)
                assert (part.running_var + part.eps == 1).all()
                part.weight.copy_(1 + quarters(part.num_features, seed=seed).abs().round())
                part.bias.copy_(quarters(part.num_features, seed=seed + 50))
                part.running_mean.copy_(quarters(part.num_features, seed=seed + 90))
            elif isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.copy_(quarters(*part.weight.shape, seed=seed))
                if part.bias is not None:
                    part.bias.copy_(quarters(*part.bias.shape, seed=seed + 7))
    return module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("make", SYNAPSES.values(), ids=SYNAPSES)
def test_folding_keeps_spikes_that_hit_the_threshold_exactly(
    make: Callable[[], Synapse], dtype: torch.dtype
) -> None:
    model = make_dyadic(Chain(synapse=make(), neuron=LIF()).to(dtype)).eval()
    x = random_spikes(2, 8, 4, 6, 7, seed=1).to(dtype)
    current = model.synapse(x)
    # After one step from rest the membrane is half the current: put the threshold upon one.
    model.neuron.v_threshold = current[0].quantile(0.7, interpolation="nearest").item() / 2
    assert (current[0] / 2 == model.neuron.v_threshold).any()
    folded = fold(model)
    assert torch.equal(folded.synapse(x), current)
    for ours, plain in zip(
        folded.neuron.fire(folded.synapse(x)), model.neuron.fire(current), strict=True
    ):
        assert torch.equal(ours, plain)


def test_fold_refuses_training_mode() -> None:
    with pytest.raises(InputError, match=r"eval mode: call model\.eval\(\)"):
        fold(Chain(ConvBN(2, 2, 1)))


def test_fold_returns_a_copy_of_the_same_dtype_in_eval_mode() -> None:
    model = enliven(Chain(conv=RepConv(2, 3), neuron=LIF())).float().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    assert_same(model.state_dict(), before)
    assert isinstance(model.conv, RepConv)
    assert not any(module.training for module in folded.modules())
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    own = {p.data_ptr() for p in model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in folded.parameters())


def test_folding_twice_changes_nothing() -> None:
    model = enliven(Chain(attn=SDSA3(4, 2), mlp=SepConv(4))).eval()
    once_folded = fold(model)
    assert_same(fold(once_folded).state_dict(), once_folded.state_dict())


def test_a_layer_used_in_two_places_stays_one_function() -> None:
    shared = ConvBN(3, 3, 3)
    model = enliven(nn.Sequential(Chain(shared), LIF(), Chain(shared))).eval()
    x = randn(2, 1, 3, 4, 4)
    assert_same(fold(model)(x), model(x))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        dict(attention=SDSA1),
        dict(attention=SDSA2),
        dict(attention=SDSA4),
        dict(shortcut=sew_shortcut),
        dict(shortcut=vanilla_shortcut),
    ],
    ids=lambda overrides: getattr(next(iter(overrides.values()), None), "__name__", "default"),
)
def test_a_folded_model_fires_the_same_spikes(overrides: dict[str, object]) -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny", **overrides)).eval()
    x = randn(3, 2, 3, 48, 64, seed=1)
    with torch.no_grad():
        folded = sf.fold(model)
        assert not any(isinstance(module, BatchNorm) for module in folded.modules())
        expected = spikes_of(model, lambda: model(x))
        assert_lively({path: s for path, s in expected.items() if path != "head.neuron"})
        actual = spikes_of(folded, lambda: folded(x))
        assert_same(folded(x), model(x))
    assert list(actual) == list(expected)
    for path, spikes in expected.items():
        assert torch.equal(actual[path], spikes), path


def test_the_scale_of_sdsa3_folds_into_its_threshold_and_that_of_sdsa4_stays() -> None:
    constant, learned = fold(SDSA3(4, 2).eval()), fold(SDSA4(4, 2).eval())
    assert (constant.scale, constant.neuron.v_threshold) == (1.0, 4.0)
    assert learned.scale == 0.125
    assert isinstance(learned.neuron, LearnedThresholdLIF)


def test_per_step_pools_every_step_alone() -> None:
    x = randn(3, 2, 4, 6, 5, seed=1)
    expected = torch.stack([F.max_pool2d(step, 3, 2, 1) for step in x])
    assert torch.equal(PerStep(nn.MaxPool2d(3, 2, 1))(x), expected)


def test_once_equals_the_stem_at_every_step_in_eval_mode() -> None:
    stem = enliven(ConvBN(3, 4, 3, stride=2)).eval()
    image = randn(2, 3, 7, 5, seed=1)
    for steps in (1, 4):
        x = image.expand(steps, *image.shape)
        assert_same(once(stem)(x), stem(x))


def test_once_shows_the_norm_one_image_per_sample_and_sums_the_gradient_over_time() -> None:
    image = randn(2, 3, 7, 5, seed=1).requires_grad_()
    stem, alone = (enliven(ConvBN(3, 4, 3)) for _ in range(2))
    y = once(stem)(image.expand(3, *image.shape))
    expected = alone(image[None])
    assert_same(statistics(stem), statistics(alone))
    cotangent = randn(*y.shape, seed=2)
    (grad,) = torch.autograd.grad((y * cotangent).sum(), image)
    (truth,) = torch.autograd.grad((expected * cotangent.sum(0, keepdim=True)).sum(), image)
    assert_same(grad, truth)


def test_once_refuses_steps_that_differ() -> None:
    x = torch.zeros(3, 1, 3, 4, 4)
    x[2, 0, 1, 2, 3] = 1e-6
    with pytest.raises(InputError, match="time steps of x differ"):
        once(ConvBN(3, 4, 3))(x)
