"""Neuron modules: published semantics, no memory between calls, exact scaling."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from spikeformers.errors import InputError
from spikeformers.neurons import (
    DSRIF,
    DSRLIF,
    IF,
    ILIF,
    LIF,
    PLIF,
    AcrossBatch,
    LearnedThresholdLIF,
    Neuron,
    NeuronFactory,
)
from spikeformers.streaming import advance
from tests.helpers import assert_same, fire_in_numpy, integrate, leaky, randn

FACTORIES: dict[str, NeuronFactory] = {
    "LIF": LIF,
    "soft LIF": partial(LIF, v_reset=None, tau=3.0),
    "IF": IF,
    "PLIF": PLIF,
    "LearnedThresholdLIF": LearnedThresholdLIF,
    "AcrossBatch": lambda: AcrossBatch(LIF()),
}
X = 2 * randn(6, 3, 4, seed=1)

each_neuron = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@each_neuron
def test_calls_leave_no_residue(factory: NeuronFactory) -> None:
    neuron = factory().double()
    before = {**neuron.state_dict()}, dict(vars(neuron))
    first = neuron(X)
    neuron(randn(2, 9, 7, seed=2))
    assert torch.equal(neuron(X), first)
    assert ({**neuron.state_dict()}, dict(vars(neuron))) == before


@each_neuron
def test_spikes_are_bits_and_forward_is_fire_from_rest(factory: NeuronFactory) -> None:
    neuron = factory().double()
    spikes = neuron(X)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(spikes, neuron.fire(X, None)[0])


def assert_fires_like(
    neuron: Neuron, expected: tuple[object, ...], x: Tensor = X, v0: Tensor | None = None
) -> None:
    spikes, v = neuron.double().fire(x, v0)
    assert torch.equal(spikes, torch.as_tensor(expected[0]))
    assert_same(v, torch.as_tensor(expected[1]))


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.25])
@pytest.mark.parametrize("tau", [1.0, 1.5, 2.0, 8.0])
def test_lif(tau: float, v_reset: float | None, decay_input: bool) -> None:
    neuron = LIF(tau, 0.75, v_reset, decay_input)
    charge, v0 = leaky(tau, decay_input, v_reset or 0.0), randn(3, 4, seed=5)
    for start in (None, v0):
        begin = None if start is None else start.numpy()
        expected = fire_in_numpy(X.numpy(), charge, 0.75, v_reset, begin)
        assert_fires_like(neuron, expected, v0=start)


def test_lif_has_the_published_defaults() -> None:
    neuron = LIF()
    assert (neuron.tau, neuron.v_threshold, neuron.v_reset) == (2.0, 1.0, 0.0)
    assert (neuron.decay_input, neuron.detach_reset, neuron.strict) == (True, True, False)
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(neuron(x)[0].sum(), x)
    s = torch.sigmoid(4 * (X[0] / 2 - 1))
    assert_same(grad[0], 0.5 * 4 * s * (1 - s))
    assert list(neuron.parameters()) == list(neuron.buffers()) == []


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_if(v_reset: float | None) -> None:
    expected = fire_in_numpy(X.numpy(), integrate, 1.5, v_reset)
    assert_fires_like(IF(v_threshold=1.5, v_reset=v_reset), expected)


def test_if_has_no_time_constant() -> None:
    with pytest.raises((InputError, TypeError)):
        IF(tau=4.0)


@pytest.mark.parametrize("tau", [1.25, 2.0, 4.0])
def test_plif_starts_as_lif_and_learns_its_decay(tau: float) -> None:
    neuron = PLIF(tau).double()
    assert neuron.w.shape == ()
    torch.testing.assert_close(neuron.w.sigmoid().item(), 1 / tau, rtol=1e-6, atol=0)
    if tau == 2.0:
        assert neuron.w.item() == 0
        assert_fires_like(neuron, fire_in_numpy(X.numpy(), leaky(2.0)))
    neuron(X).sum().backward()
    assert neuron.w.grad is not None and neuron.w.grad.abs() > 0


def test_plif_decays_by_the_sigmoid_of_its_weight() -> None:
    neuron = PLIF().double()
    with torch.no_grad():
        neuron.w.fill_(0.8)
    tau = 1 + math.exp(-0.8)
    assert_fires_like(neuron, fire_in_numpy(X.numpy(), leaky(tau)))


@pytest.mark.parametrize("threshold", [0.5, 1.0, 0.75])
def test_a_learned_threshold_starts_at_its_value_and_stays_positive(threshold: float) -> None:
    neuron = LearnedThresholdLIF(v_threshold=threshold).double()
    assert neuron.threshold.item() == pytest.approx(threshold, rel=1e-6)
    if threshold != 0.75:
        assert_fires_like(neuron, fire_in_numpy(X.numpy(), leaky(2.0), threshold))
    neuron(X).sum().backward()
    assert neuron.w.grad is not None and neuron.w.grad.abs() > 0
    with torch.no_grad():
        neuron.w.fill_(-30.0)
    assert neuron.threshold > 0


def test_ilif_emits_scaled_integers_and_keeps_what_is_left() -> None:
    x = torch.tensor([[2.6], [0.5], [9.0], [-1.0]])
    spikes, v = ILIF(levels=3, decay=0.5, scale=0.25).fire(x)
    # u is 2.6, 0.5 (2.6 - 3) + 0.5 = 0.3, 9.15 and 0.5 (9.15 - 3) - 1 = 2.075.
    assert spikes.flatten().tolist() == [0.75, 0.0, 0.75, 0.5]
    torch.testing.assert_close(v, torch.tensor([0.075]))


def test_ilif_has_the_published_defaults() -> None:
    neuron = ILIF()
    assert (neuron.levels, neuron.decay, neuron.scale) == (4, 0.25, 1.0)
    assert (neuron.rounding, neuron.v_threshold) == ("half_even", 1.0)
    assert list(neuron.parameters()) == list(neuron.buffers()) == []
    halves = torch.tensor([[0.5, 1.5]])
    assert neuron(halves).tolist() == [[0, 2]]
    assert ILIF(rounding="half_up")(halves).tolist() == [[1, 2]]


def test_only_a_neuron_that_remembers_has_a_state() -> None:
    memoryless, leaky_one = ILIF(decay=0.0), ILIF(decay=0.25)
    assert (memoryless.remembers, leaky_one.remembers, LIF().remembers) == (False, True, True)
    assert advance(memoryless, X)[1] == {}
    first, state = advance(leaky_one, X[:2])
    assert set(state) == {".membrane"}
    rest, _ = advance(leaky_one, X[2:], state)
    assert torch.equal(torch.cat([first, rest]), leaky_one(X))


def test_a_memoryless_neuron_may_run_twice_in_a_stream() -> None:
    neuron = ILIF(decay=0.0)
    twice = torch.nn.Sequential(neuron, neuron)
    assert torch.equal(advance(twice, X)[0], twice(X))


@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
@pytest.mark.parametrize("scale", [0.125, 1.0, 2.0])
def test_ilif_absorbs_a_power_of_two_exactly(scale: float, rounding: str) -> None:
    neuron = ILIF(rounding=rounding, scale=0.25, v_threshold=0.5)
    twin = neuron.absorb(scale)
    assert twin is not None
    x = (12 * randn(9, 50, seed=3)).round() / (8 * scale)  # many exact halves
    spikes, v = twin.fire(x)
    expected, expected_v = neuron.fire(scale * x)
    assert expected.unique().numel() == 5
    assert torch.equal(spikes, expected)
    assert torch.equal(scale * v, expected_v)
    assert neuron.v_threshold == 0.5, "the original is untouched"
    assert neuron.absorb(0.3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(levels=0), "levels=0"),
        (dict(decay=-0.1), r"decay=-0\.1"),
        (dict(rounding="up"), "rounding='up'"),
        (dict(v_threshold=0.0), r"v_threshold=0\.0"),
    ],
)
def test_an_impossible_ilif_is_refused_when_it_is_made(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ILIF(**options)


def test_across_batch_scans_time_and_batch_as_one_axis() -> None:
    expected = LIF()(X.reshape(18, 4)).reshape(6, 3, 4)
    actual = AcrossBatch(LIF())(X)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, LIF()(X))
    assert torch.equal(AcrossBatch(LIF())(X[:, :1]), LIF()(X[:, :1]))


def test_across_batch_refuses_a_state() -> None:
    with pytest.raises(InputError, match="no state"):
        AcrossBatch(LIF()).fire(X, X[0])


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_a_hard_reset_neuron_stays_below_threshold_and_above_its_smallest_input(
    tau: float,
) -> None:
    x = 5 * randn(40, 100, seed=9)
    _, v = LIF(tau).fire(x)
    assert (v < 1).all()
    assert (v >= x.min().clamp(max=0)).all()
    v0 = torch.zeros(100, dtype=x.dtype)
    for current in x:
        before = v0
        spikes, v0 = LIF(tau).fire(current[None], before)
        assert (v0[spikes[0] == 1] == 0).all()
        low, high = torch.minimum(before, current), torch.maximum(before, current)
        quiet = spikes[0] == 0
        assert ((v0 >= low - 1e-12) & (v0 <= high + 1e-12))[quiet].all()


@pytest.mark.parametrize("scale", [0.125, 0.25, 1.0, 2.0, 2.0**-20])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("make", [LIF, IF, partial(LIF, tau=3.0), partial(LIF, strict=True)])
def test_absorbing_a_power_of_two_is_exact(
    make: NeuronFactory, v_reset: float | None, scale: float
) -> None:
    neuron = make(v_threshold=0.5, v_reset=v_reset)
    twin = neuron.absorb(scale)
    assert twin is not None
    # Integers over the scale, so that many h hit the threshold exactly.
    x = (4 * randn(9, 50, seed=3)).round() / (8 * scale)
    v0 = randn(50, seed=4)
    for start, scaled in ((None, None), (v0 / scale, v0)):
        spikes, v = twin.fire(x, start)
        expected, expected_v = neuron.fire(scale * x, scaled)
        assert 0 < expected.mean() < 1
        assert torch.equal(spikes, expected)
        assert torch.equal(scale * v, expected_v)
    assert neuron.v_threshold == 0.5, "the original is untouched"


def test_absorbing_keeps_exact_hits() -> None:
    x = torch.tensor([[8.0], [7.0], [9.0], [8.0]])
    neuron = LIF(v_threshold=0.5)
    twin = neuron.absorb(0.125)
    assert twin is not None and twin.v_threshold == 4.0
    expected = [1.0, 0.0, 1.0, 1.0]
    assert twin(x).flatten().tolist() == neuron(0.125 * x).flatten().tolist() == expected


@pytest.mark.parametrize(
    "neuron",
    [LIF(v_reset=0.25), PLIF(), LearnedThresholdLIF(), AcrossBatch(LIF())],
    ids=lambda neuron: type(neuron).__name__,
)
def test_what_cannot_absorb_exactly_says_so(neuron: Neuron) -> None:
    assert neuron.absorb(0.125) is None


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.3, 3.0, math.inf, math.nan])
def test_only_positive_powers_of_two_are_absorbed(scale: float) -> None:
    assert LIF().absorb(scale) is None


@pytest.mark.parametrize("factory", [LIF, PLIF, LearnedThresholdLIF])
def test_time_constants_below_one_step_are_refused(factory: NeuronFactory) -> None:
    with pytest.raises(InputError, match=r"tau=0\.5"):
        factory(tau=0.5)


def test_parameters_that_no_finite_weight_can_hold_are_refused() -> None:
    with pytest.raises(InputError, match=r"tau=1\.0: a learned time constant must start above 1"):
        PLIF(tau=1.0)
    for threshold in (0.0, -1.0):
        with pytest.raises(InputError, match="must be positive"):
            LearnedThresholdLIF(v_threshold=threshold)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factory", [LIF, IF, PLIF, LearnedThresholdLIF])
def test_sixteen_bit_models_keep_a_wide_membrane(
    factory: NeuronFactory, dtype: torch.dtype
) -> None:
    neuron = factory().to(dtype)
    x = X.to(dtype).requires_grad_()
    spikes, v = neuron.fire(x)
    assert (spikes.dtype, v.dtype) == (dtype, torch.float32)
    spikes.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == dtype for p in neuron.parameters())


@pytest.mark.parametrize("factory", [DSRIF, DSRLIF])
def test_a_dsr_threshold_is_raised_in_training_and_only_read_as_raised_in_eval(
    factory: NeuronFactory,
) -> None:
    neuron = factory(v_threshold=1.0, lower_bound=0.25).double()
    neuron.v_threshold.data.fill_(-3.0)
    with torch.no_grad():
        height = neuron.eval()(X.abs() + 6).max()
        assert_same(height, torch.tensor(0.25 / neuron.dt, dtype=X.dtype))
        assert neuron.v_threshold == -3
    neuron.train()(X.abs() + 6).sum().backward()
    assert neuron.v_threshold == 0.25
    assert neuron.v_threshold.grad is not None and neuron.v_threshold.grad.abs() > 0


def test_two_passes_of_a_dsr_neuron_share_one_backward() -> None:
    neuron = DSRIF(v_threshold=1.0).double()
    x = X.clone().requires_grad_()
    (neuron(x).sum() + neuron(2 * x).sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("factory", [DSRIF, DSRLIF])
def test_every_step_of_a_dsr_neuron_receives_the_same_gradient(factory: NeuronFactory) -> None:
    x = X.clone().requires_grad_()
    neuron = factory(v_threshold=1.0).double()
    (neuron(x) * randn(*X.shape, seed=3)).sum().backward()
    assert x.grad is not None and x.grad.any()
    assert torch.equal(x.grad, x.grad[:1].expand_as(x.grad))


def test_the_factor_of_a_dsr_threshold_s_gradient() -> None:
    grads = []
    for factor in (1.0, 0.001):
        neuron = DSRIF(v_threshold=0.1, threshold_grad=factor).double()
        neuron(X).sum().backward()
        assert neuron.v_threshold.grad is not None
        grads.append(neuron.v_threshold.grad)
    assert grads[0] != 0
    assert_same(grads[1], 0.001 * grads[0])


@pytest.mark.parametrize("options", [dict(lower_bound=0.0), dict(v_threshold=0.001)])
def test_a_dsr_threshold_and_its_bound_must_fit(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"v_threshold=.* and lower_bound="):
        DSRIF(**options)


@pytest.mark.parametrize("options", [dict(tau=0.0), dict(dt=0.0)])
def test_a_dsr_neuron_needs_positive_times(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected two positive numbers"):
        DSRLIF(**options)
