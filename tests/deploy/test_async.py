"""Single spikes with delays: exact without them, and each claim about them on a tiny network."""

import json

import pytest
import torch
from torch import Tensor, nn

from spikeformers.deploy import (
    AsyncNetwork,
    arrival_order,
    async_sim,
    jitter_study,
    run_async,
    run_waiting,
)
from spikeformers.deploy._delay_lines import DelayLines
from spikeformers.errors import InputError
from spikeformers.layers import (
    SSA,
    Branch,
    Chain,
    ClassificationHead,
    ConvBN,
    LinearBN,
    PerStep,
    Trunk,
    sew,
)
from spikeformers.neurons import IF, ILIF, LIF, PLIF, AcrossBatch
from tests.helpers import assert_lively, assert_same, enliven, randn, spikes_of

pytestmark = pytest.mark.compile

X = randn(3, 2, 2, 6, 6)
TICKS = 4


class Neurons:
    """The variants that a membrane can have."""

    soft = staticmethod(lambda: LIF(v_reset=None))
    plain = staticmethod(lambda: LIF(tau=3.0, decay_input=False))
    learned = staticmethod(lambda: PLIF(tau=2.5))
    to_a_value = staticmethod(lambda: LIF(v_reset=-0.1))


def network(*parts: nn.Module, neuron=LIF) -> Chain:
    return enliven(Chain(ConvBN(2, 8, 3), neuron(), *parts, ClassificationHead(8, 5, nn.Identity)))


def plain(neuron=LIF) -> Chain:
    """Weights, sums and averages only, as STMixer is made of."""
    trunk = Trunk([dict(mixer=Branch(neuron(), ConvBN(8, 8, 3)))])
    end = [neuron(), PerStep(nn.AvgPool2d(2)), LinearBN(8, 8), neuron()]
    return network(ConvBN(8, 8, 3), trunk, *end, neuron=neuron)


def attentive() -> Chain:
    """With what needs a clock."""
    attention = sew(Chain(fn=SSA(8, 2, neuron=LIF), neuron=LIF()), connect="add")
    return network(PerStep(nn.MaxPool2d(2)), LinearBN(8, 8), LIF(), attention)


@pytest.mark.parametrize(
    "model",
    [
        plain(),
        plain(IF),
        plain(Neurons.soft),
        plain(Neurons.plain),
        plain(Neurons.learned),
        plain(Neurons.to_a_value),
        attentive(),
        network(sew(Chain(ConvBN(8, 8, 3), LIF()), connect="iand")),
    ],
    ids=["lif", "if", "soft", "plain", "plif", "value", "attention", "iand"],
)
def test_without_delays_it_is_the_clocked_run(model: Chain) -> None:
    model.eval()
    spikes = spikes_of(model, lambda: model(X))
    assert_lively(spikes)
    run = run_async(AsyncNetwork(model, X, TICKS), X)
    with torch.no_grad():
        assert_same(run.logits, model(X))
    for counts, clocked in zip(run.spikes, spikes.values(), strict=True):
        assert torch.equal(counts, clocked.sum(0))


def test_weights_and_averages_hand_on_every_spike_whenever_it_comes() -> None:
    """Only the first neurons fire here, on the image, so that nothing but sums is left."""
    model = network(PerStep(nn.AvgPool2d(2)), sew(LinearBN(8, 8), connect="add"))
    spiking = AsyncNetwork(model, X, TICKS)
    clocked = run_async(spiking, X).logits.sum(0)
    for seed in range(3):
        assert_same(run_async(spiking, X, 2.0, seed).logits.sum(0), clocked)


def test_a_max_pool_hands_on_more_spikes_when_they_come_apart() -> None:
    pooled = enliven(Chain(ConvBN(2, 8, 3), LIF(), PerStep(nn.MaxPool2d(2)), IF(v_threshold=0.5)))
    spiking = AsyncNetwork(pooled, X, 16)
    clocked, late = run_async(spiking, X), run_async(spiking, X, 1.0)
    assert torch.equal(clocked.spikes[0], late.spikes[0])
    assert late.spikes[1].sum() > 1.2 * clocked.spikes[1].sum()


def test_a_product_of_spikes_loses_what_does_not_coincide() -> None:
    spiking = AsyncNetwork(attentive(), X, 16)
    assert run_async(spiking, X, 1.0).shared_spikes(run_async(spiking, X)) < 0.9


def test_neurons_that_wait_need_no_clock_behind_additive_operations() -> None:
    spiking = AsyncNetwork(plain(), X, TICKS)
    clocked, late = run_async(spiking, X), run_waiting(spiking, X, 1.5)
    assert_same(late.logits, clocked.logits)
    assert late.shared_spikes(clocked) == 1


def test_neurons_that_wait_cannot_mend_maxima_and_products() -> None:
    spiking = AsyncNetwork(attentive(), X, TICKS)
    clocked = run_async(spiking, X)
    assert_same(run_waiting(spiking, X).logits, clocked.logits)
    assert run_waiting(spiking, X, 1.5).shared_spikes(clocked) < 0.95


class Diary(DelayLines):
    """Delay lines that note what leaves and what arrives."""

    def __init__(self, longest: int, seed: int) -> None:
        super().__init__(longest, seed)
        self.sent: dict = {}
        self.arrived: dict = {}

    def send(self, line, spikes, tick) -> None:
        self.sent.setdefault(line, []).append((tick, spikes.clone()))
        super().send(line, spikes, tick)

    def take(self, line, tick) -> Tensor:
        arrived = super().take(line, tick)
        self.arrived.setdefault(line, []).append((tick, arrived))
        return arrived


@pytest.fixture
def diaries(monkeypatch) -> list[Diary]:
    kept: list[Diary] = []

    def keep(longest: int, seed: int) -> Diary:
        kept.append(Diary(longest, seed))
        return kept[-1]

    monkeypatch.setattr(async_sim, "DelayLines", keep)
    return kept


def total(notes: list[tuple[int, Tensor]]) -> Tensor:
    return torch.stack([spikes for _, spikes in notes]).sum(0)


def test_every_spike_arrives_once_and_within_the_jitter(diaries) -> None:
    run_async(AsyncNetwork(plain(), X, TICKS), X, 0.75)
    (diary,) = diaries
    assert diary.length == len(diary.sent) == 4
    for line, sent in diary.sent.items():
        assert torch.equal(total(sent), total(diary.arrived[line]))
        # A tick later than any spike can be under way, there is none.
        left, came = ({t for t, s in notes if s.any()} for notes in (sent, diary.arrived[line]))
        assert all(any(t - u in range(4) for u in left) for t in came)


def test_neurons_integrate_what_arrives_and_leak_with_the_time_that_passed(diaries) -> None:
    """Replays the second layer of neurons event by event, from what the diary says arrived."""
    model = Chain(PerStep(nn.Linear(3, 4)), LIF(), PerStep(nn.Linear(4, 2)), LIF(decay_input=False))
    enliven(model)
    x = 2 * randn(4, 1, 3)
    run = run_async(AsyncNetwork(model, x, TICKS), x, 1.25)
    arrivals, _ = diaries[0].arrived.values()
    weight, bias = model[2].module.weight.detach(), model[2].module.bias.detach()
    v, last, fired = torch.zeros(1, 2).double(), -TICKS, torch.zeros(1, 2).double()
    for tick, spikes in arrivals:
        begins = tick % TICKS == 0 and tick < len(x) * TICKS
        h = v * 0.5 ** ((tick - last) / TICKS) + spikes[0] @ weight.T + (bias if begins else 0)
        s = (h >= 1).double()
        v, last, fired = h * (1 - s), tick, fired + s
    assert fired.sum() > 1
    assert torch.equal(run.spikes[1], fired)


def test_delays_are_a_function_of_the_seed() -> None:
    spiking = AsyncNetwork(plain(), X, TICKS)
    first, same, other = (run_async(spiking, X, 1.0, seed) for seed in (0, 0, 1))
    assert torch.equal(first.logits, same.logits)
    assert not torch.equal(first.logits, other.logits)


@pytest.mark.parametrize(
    ("model", "dependent"),
    [(plain(), {"lif"}), (attentive(), {"lif", "max_pool2d", "matmul"})],
    ids=["plain", "attention"],
)
def test_what_is_said_to_be_independent_of_the_order_is_measured_to_be(model, dependent) -> None:
    rows = arrival_order(AsyncNetwork(model, X, TICKS), X)
    assert all(row.changed == 0 for row in rows if row.is_independent)
    assert {row.op for row in rows if not row.is_independent} == dependent
    assert {row.op for row in rows if row.changed > 0} == dependent
    # The first neurons read the image, which comes at once.
    assert {row.path: row.changed for row in rows}["1"] == 0


def test_a_study_compares_answers_spikes_and_accuracy() -> None:
    report = jitter_study(plain(), X, [0.0, 1.0], torch.tensor([0, 1]), ticks=TICKS)
    still, late, _, waiting = report.rows
    assert (still.agreement, still.shared_spikes, still.spikes) == (1.0, 1.0, 1.0)
    assert late.shared_spikes < 1 and late.top1 in (0.0, 50.0, 100.0)
    assert (waiting.neurons, waiting.jitter, waiting.shared_spikes) == ("wait", 1.0, 1.0)
    assert json.loads(json.dumps(report.as_dict()))["samples"] == 2
    assert f"order does not matter: {len(report.operations) - 4} of" in str(report)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(ILIF()), {}, "is ilif: expected IF and LIF neurons only"),
        (network(AcrossBatch(LIF())), {}, "across the batch"),
        (plain(), dict(ticks=0), "ticks=0"),
        (plain(), dict(jitters=[-1.0]), "jitter=-1.0"),
        (plain(), dict(jitters=[]), "jitters is empty"),
    ],
)
def test_mistakes_get_one_sentence(model, options, message) -> None:
    with pytest.raises(InputError, match=message):
        jitter_study(model, X, **{"jitters": [0.5], **options})
