"""The integer network computes exactly what the network of rounded weights does, by adding."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import CheckpointError, InputError
from spikeformers.layers import Chain, Conv, ConvBN, PerStep, SpikeSepConv, fold, vanilla
from spikeformers.neurons import IF, ILIF, LIF, PLIF, AcrossBatch
from spikeformers.transform import IntegerNetwork, quantize, spike_between
from spikeformers.transform.integer.rounding import FRACTION_BITS, round_weight, simulate_rounding
from tests.helpers import assert_lively, enliven, randn, spikes_of

pytestmark = pytest.mark.compile

FAMILIES = {
    "sdt_tiny": {},
    "sew_resnet_tiny": {},
    "meta_spikeformer_tiny": {"token_mixer": partial(SpikeSepConv, kernel_size=3)},
}
STEPS = 3


def with_rounded_weights(model: nn.Module) -> nn.Module:
    """Return the folded model with the weights and offsets of its integer network."""
    folded = fold(model)
    with torch.no_grad():
        for module in folded.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                steps, exponent = round_weight(module.weight)
                per_channel = exponent.view(-1, *[1] * (steps.ndim - 1))
                module.weight.copy_(torch.ldexp(steps, -per_channel))
                if module.bias is not None:
                    units = torch.tensor(FRACTION_BITS)
                    module.bias.copy_(torch.ldexp(torch.ldexp(module.bias, units).round(), -units))
    return folded


@cache
def case(name: str) -> tuple[nn.Module, IntegerNetwork, Tensor]:
    """Return the rounded model, its integer network and an input."""
    model = enliven(sf.create_model(name, num_classes=10, **FAMILIES.get(name, {}))).eval()
    x = randn(STEPS, 2, 3, 32, 32, seed=1)
    return with_rounded_weights(model), quantize(model, x), x


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_spikes_equal_those_of_the_rounded_weights(name: str) -> None:
    model, network, x = case(name)
    expected: dict[str, Tensor] = {}
    scores = spikes_of(model, lambda: expected.update(y=model(x)))
    assert torch.equal(network(x) * network.operations[-1].scale, expected["y"])
    assert (expected["y"][:, 0] - expected["y"][:, 1]).abs().max() > 1e-3, "samples differ"
    assert_lively(
        {path: s for path, s in scores.items() if "attn" not in path and "head" not in path}
    )
    neurons = [op for op in network.operations if op.kind == "neuron"]
    assert [op.path for op in neurons] == list(scores)
    for t, step in enumerate(network.steps(x)):
        for op in neurons:
            assert torch.equal(step.values[op.name].double(), scores[op.path][t]), op.path


@pytest.mark.parametrize("name", FAMILIES)
def test_additions_equal_the_energy_report(name: str) -> None:
    model, network, x = case(name)
    counts = sf.energy(model, x).counts
    performed = network.run(x)[1]

    def additions(*kinds: str) -> float:
        return sum(performed[op.name] for op in network.operations if op.kind in kinds) / x.shape[1]

    assert additions("synapse", "product", "sum") == counts["AC"] > 1000
    assert additions("add") == counts.get("shortcut", 0)
    assert additions("sum_pool") == counts["pool"]
    assert additions("encode", "shift", "mask", "max_pool", "reshape", "neuron") == 0


@pytest.mark.parametrize("name", [*FAMILIES, "revsresnet_tiny"])
def test_nothing_is_real_after_encoding_and_bounds_hold(name: str) -> None:
    _, network, x = case(name)
    kinds = [op.kind for op in network.operations]
    assert kinds[0] == "encode"
    assert kinds.count("encode") == 1
    whole = {torch.int8, torch.int32}
    assert {t.dtype for op in network.operations for t in op.tensors.values()} == whole
    for step in network.steps(x):
        for op in network.operations:
            value = step.values[op.name]
            assert value.dtype == torch.int64
            assert op.low is None or op.low <= value.min()
            assert op.high is None or value.max() <= op.high
    assert "after it: 0 floating-point operations, 0 multiplications" in network.summary()


def in_front_of(neuron: nn.Module, weight: float = 1.0) -> Chain:
    """Return an encoder that hands every value to its own neuron."""
    conv = Conv.of(torch.full((1, 1, 1, 1), weight), torch.zeros(1))
    return Chain(conv=conv, neuron=neuron).double().eval()


@pytest.mark.parametrize(
    "neuron",
    [
        LIF(),
        LIF(tau=4.0),
        LIF(tau=2.0, decay_input=False),
        LIF(v_threshold=0.7, strict=True),
        LIF(v_threshold=0.75, v_reset=None),
        LIF(tau=1.0),
        IF(),
        IF(v_threshold=0.5, v_reset=None),
    ],
    ids=lambda neuron: f"{type(neuron).__name__}({neuron.extra_repr()})",
)
def test_neurons_equal_ours_where_no_bit_is_lost(neuron: LIF) -> None:
    model = in_front_of(neuron)
    # Steps of 2^-8 that are shifted four times by up to two bits stay whole in units of 2^-16.
    x = (randn(4, 5, 1, 4, 4, seed=2) * 768).round() / 256
    network = quantize(model, x)
    spikes = model(x)
    assert torch.equal(network(x), spikes.long())
    assert 0 < spikes.mean() < 1


def test_a_leak_rounds_down() -> None:
    network = quantize(in_front_of(LIF(v_threshold=2.0)), torch.zeros(1, 1, 1, 1, 1))
    unit = 2.0**-FRACTION_BITS
    x = torch.tensor([3.0, -3.0, 0.0]).view(3, 1, 1, 1, 1).double() * unit
    neuron = network.operations[-1].name
    membranes = [int(step.membranes[neuron]) for step in network.steps(x)]
    assert membranes == [1, -1, -1], "3/2, (1 - 3)/2 and -1/2"


@pytest.mark.parametrize(("strict", "more"), [(False, 0), (True, 1)])
def test_thresholds_take_the_factor_of_a_mean(strict: bool, more: int) -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((-2, -1))

    model = in_front_of(Head())
    model.add_module("fires", LIF(v_threshold=0.5, strict=strict))
    network = quantize(model.eval(), torch.zeros(1, 1, 1, 3, 3))
    threshold = network.operations[-1].tensors["threshold"]
    assert threshold.tolist() == [9 * 2**FRACTION_BITS // 2 + more]


def test_spikes_align_with_the_currents_they_are_added_to() -> None:
    body = Conv.of(torch.tensor([[[[0.25]]]]), torch.tensor([-0.5]))
    model = in_front_of(LIF())
    model.add_module("vanilla", vanilla(body, IF()))
    x = (randn(4, 2, 1, 4, 4, seed=3) * 256).round() / 64
    model.double().eval()
    network = quantize(model, x)
    assert torch.equal(network(x), model(x).long())
    assert [op.settings["bits"] for op in network.operations if op.kind == "shift"] == [16]


def separable() -> nn.Module:
    return enliven(
        sf.create_model("meta_spikeformer_xs32", dims=(8, 8, 8), depths=(1, 0, 1))
    ).eval()


def test_refuses_what_multiplies_and_names_the_fix() -> None:
    with pytest.raises(InputError, match=r"multiplies in 1 operation.*mixer\.fn\.project.*merge="):
        quantize(separable(), torch.zeros(1, 1, 3, 16, 16))


def test_merge_makes_the_dense_network() -> None:
    model, x = separable(), randn(2, 2, 3, 16, 16, seed=4)
    network = quantize(model, x, merge=True)
    expected = with_rounded_weights(sf.transform.merge_depthwise(model))(x)
    assert torch.equal(network(x) * network.operations[-1].scale, expected)


def test_a_neuron_between_keeps_the_weights_and_can_be_saved(tmp_path: Path) -> None:
    model, x = separable(), randn(2, 8, 3, 16, 16, seed=5)
    between = spike_between(model, [x])
    mixer = between.stages[0].blocks[0]["mixer"].fn
    assert type(mixer) is SpikeSepConv
    assert not between.training
    before = {k.replace("depthwise.conv", "depthwise"): v for k, v in between.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    seen: dict[str, Tensor] = {}
    mixer.depthwise.register_forward_hook(lambda _m, _x, y: seen.update(y=y))
    between(x)
    y, norm = seen["y"].transpose(0, 2).flatten(1), mixer.depthwise.norm
    assert (y.mean(1) - norm.bias).abs().max() < 1e-9
    alive = norm.running_var > 0.01
    assert alive.sum() > 8
    assert (y.std(1)[alive] - 1).abs().max() < 1e-2
    sf.save_model(between, tmp_path / "between.safetensors")
    assert torch.equal(sf.load_model(tmp_path / "between.safetensors")(x), between(x))
    network = quantize(model, x, neuron_between=True)
    assert torch.equal(network(x), quantize(between, x)(x))


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LIF(tau=1.5), r"neuron \(spikeformers::lif\) has tau=1\.5: a shift leaks"),
        (PLIF(tau=2.5), r"has tau=2\.5: a shift leaks with a power of two"),
        (LIF(v_reset=0.25), r"resets to 0\.25: expected 0 or by subtraction"),
        (AcrossBatch(LIF()), r"integrates across the samples of a batch"),
        (ILIF(), r"\(spikeformers::ilif\) has no integer form"),
        (Squared(), r"multiplies in 1 operation.*cumsum"),
        (PerStep(nn.MaxPool2d(3, 2, ceil_mode=True)), r"has dilation or ceil_mode"),
        (LIF(v_threshold=1e6), r"has the integer threshold 65536000000"),
    ],
    ids=["tau", "learned tau", "v_reset", "across", "integer", "unknown", "pool", "threshold"],
)
def test_refuses_by_name(part: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(in_front_of(part), torch.zeros(1, 1, 1, 6, 6))


def test_bad_arguments_are_named() -> None:
    model, x = in_front_of(LIF()), torch.zeros(1, 1, 1, 4, 4)
    with pytest.raises(InputError, match=r"batches is empty"):
        quantize(model, [])
    with pytest.raises(InputError, match=r"merge=True and neuron_between=True: choose one"):
        quantize(model, x, merge=True, neuron_between=True)
    with pytest.raises(InputError, match=r"call model\.eval"):
        quantize(in_front_of(LIF()).train(), x)
    with pytest.raises(
        InputError, match=r"x has shape \[1, 1, 1, 5, 5\]: expected \[T, B, 1, 4, 4\]"
    ):
        quantize(model, x)(torch.zeros(1, 1, 1, 5, 5))


def test_an_overflow_is_an_error_that_names_the_layer() -> None:
    heavy = Chain(in_front_of(LIF()), Conv.of(torch.full((1, 1, 1, 1), 40960.0), torch.zeros(1)))
    network = quantize(heavy.double().eval(), torch.zeros(1, 1, 1, 1, 1))
    assert network.operations[-1].high == 40960 * 2**FRACTION_BITS, "no spike came, but one might"
    with pytest.raises(InputError, match=r"1 \(conv2d_1\) reaches 2684354560: int32 overflows"):
        network(torch.full((1, 1, 1, 1, 1), 2.0))
    patient = quantize(in_front_of(IF(v_threshold=3e4)), torch.zeros(1, 1, 1, 1, 1))
    with pytest.raises(InputError, match=r"neuron \(lif\) reaches 2\d{9}: int32 overflows"):
        patient(torch.full((3, 1, 1, 1, 1), -2e4))


def test_a_file_holds_the_whole_network(tmp_path: Path) -> None:
    _, network, x = case("sdt_tiny")
    network.save(tmp_path / "net.safetensors")
    loaded = IntegerNetwork.load(tmp_path / "net.safetensors")
    assert torch.equal(loaded(x), network(x))
    assert loaded.run(x)[1] == network.run(x)[1]
    assert loaded.summary() == network.summary()
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    _, network, _ = case("sdt_tiny")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    sf.save_model(sf.create_model("sdt_tiny"), tmp_path / "model.safetensors")
    for name, message in {
        "missing.safetensors": "missing",
        "damaged.safetensors": "damaged",
        "model.safetensors": r"holds no integer network: make one with sf\.quantize",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            IntegerNetwork.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot write"):
        network.save(tmp_path / "model.safetensors" / "below.safetensors")


def test_weights_round_to_the_nearest_step_of_their_channel() -> None:
    weight = randn(6, 4, 3, 3, seed=6) * torch.tensor([1e-9, 1e-3, 0.1, 1, 10, 0]).view(6, 1, 1, 1)
    steps, exponent = round_weight(weight)
    assert steps.abs().max() <= 127
    peaks = steps.flatten(1).abs().amax(1).tolist()
    assert all(peak >= 64 for peak in peaks[1:5]), "no smaller power of two would do"
    assert exponent[0] == FRACTION_BITS, "no finer than a current"
    errors = torch.ldexp(steps, -exponent.view(-1, 1, 1, 1)) - weight
    step = torch.ldexp(torch.ones(6), -exponent).double()
    assert (errors.flatten(1).abs().amax(1) <= step / 2 + 1e-12).all()


def layers() -> dict[str, Any]:
    return {
        "conv": ConvBN(3, 4, 3),
        "depthwise": ConvBN(3, 3, 3, groups=3),
        "rep": sf.layers.RepConv(3, 4),
        "linear": sf.layers.LinearBN(3, 4, bias=True),
        "plain": Conv(3, 4, 1),
    }


@pytest.mark.parametrize("name", layers())
def test_simulation_rounds_values_and_lets_gradients_through(name: str) -> None:
    plain, rounded = (enliven(layers()[name]).eval() for _ in range(2))
    simulate_rounding(rounded)
    assert plain.state_dict().keys() == rounded.state_dict().keys()
    xs = [randn(2, 2, 3, 6, 6, seed=7).requires_grad_() for _ in range(2)]
    y = rounded(xs[0])
    y.sum().backward()
    plain(xs[1]).sum().backward()
    folded = fold(plain)
    steps, exponent = round_weight(folded.weight)
    folded.weight.data = torch.ldexp(steps, -exponent.view(-1, *[1] * (steps.ndim - 1)))
    torch.testing.assert_close(y, folded(xs[0]), atol=1e-9, rtol=0)
    gradients = zip(plain.named_parameters(), rounded.parameters(), strict=True)
    for (parameter, expected), actual in gradients:
        torch.testing.assert_close(actual.grad, expected.grad, msg=parameter)
    (through,) = torch.autograd.grad(folded(xs[1]).sum(), xs[1])
    torch.testing.assert_close(xs[0].grad, through, atol=1e-9, rtol=0)


def test_simulation_reaches_every_synapse_once() -> None:
    model = enliven(sf.create_model("meta_spikeformer_tiny", **FAMILIES["meta_spikeformer_tiny"]))
    x = randn(2, 1, 3, 32, 32, seed=8)
    expected = with_rounded_weights(model.eval())(x)
    simulate_rounding(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=0)
    hooked = [path for path, m in model.named_modules() if m._forward_hooks]
    assert len(hooked) > 10
    assert not [a for a in hooked for b in hooked if a.startswith(f"{b}.")], "none twice"
