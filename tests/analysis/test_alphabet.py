"""The transfer rules are sound: what a graph computes lies in what they claim."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.analysis import alphabet as room
from spikeformers.analysis import capture, interpret
from spikeformers.analysis.alphabet import MAXIMA, RULES, Facts, Origin, Value
from spikeformers.analysis.capture import Graph, op_name
from spikeformers.layers import (
    SDSA1,
    SDSA2,
    SDSA3,
    SDSA4,
    Branch,
    Chain,
    ConvBN,
    PerStep,
    SepConv,
    Trunk,
    fold,
    sew,
    vanilla,
)
from spikeformers.models import create_model, list_models
from spikeformers.neurons import IF, LIF, PLIF
from spikeformers.ops import OUTPUT_ALPHABETS
from spikeformers.types import Alphabet
from tests.analysis.claims import broken_claims
from tests.helpers import enliven, randn

pytestmark = pytest.mark.compile


def spiking_conv(neuron: type[LIF] = LIF) -> Chain:
    return Chain(conv=ConvBN(4, 4, 3), neuron=neuron(v_threshold=0.3))


class Formula(nn.Module):
    """A function as a module; `weight` is a learned scalar."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


# Each maps [T, B, 4, 8, 8] to the same shape, spikes or not.
TILES = {
    "sew_add": lambda: sew(spiking_conv()),
    "sew_and": lambda: sew(spiking_conv(IF), "and"),
    "sew_iand": lambda: sew(spiking_conv(PLIF), "iand"),
    "vanilla": lambda: vanilla(ConvBN(4, 4, 3), LIF(v_threshold=0.3)),
    "trunk": lambda: Trunk([dict(a=Branch(LIF(), SepConv(4, kernel_size=3)))]),
    "sdsa1": lambda: Chain(SDSA1(4, 2), LIF(v_threshold=0.2)),
    "sdsa2": lambda: SDSA2(4, 2),
    "sdsa3": lambda: Chain(SDSA3(4, 2, scale=0.3), LIF(v_threshold=0.2)),
    "sdsa4": lambda: SDSA4(4, 2),
    "max_pool": lambda: PerStep(nn.MaxPool2d(3, 1, 1)),
    "avg_pool": lambda: PerStep(nn.AvgPool2d(3, 1, 1)),
    "negation": lambda: Formula(lambda _, x: 1 - x),
    "difference": lambda: Formula(lambda _, x: x - x.roll(1, 3)),
    "scale": lambda: Formula(lambda _, x: x * -0.25),
    "learned_scale": lambda: Formula(lambda self, x: self.weight * x),
    "rectified": lambda: Formula(lambda _, x: F.relu(x - 1)),
    "gram": lambda: Formula(lambda _, x: x @ x.mT),
    "means": lambda: Formula(lambda _, x: x + x.mean((-2, -1), keepdim=True)),
    "padded": lambda: Formula(lambda _, x: F.pad(x, (1, 1), value=2.0)[..., 1:-1]),
    "cat": lambda: Formula(lambda _, x: torch.cat([x, 2 * x], 2)[:, :, ::2]),
}


def traced(model: nn.Module, height: int = 8) -> tuple[Graph, Tensor, Tensor]:
    graph = capture(fold(model.eval()), torch.zeros(2, 2, 3, height, height))
    return graph, *torch.randn(2, 2, 2, 3, height, height)


def discrete(facts: Facts) -> int:
    values = [v for v in facts.values.values() if isinstance(v, Value)]
    return sum(v.alphabet is not None and v.origin is Origin.SIGNAL for v in values)


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_stay_in_their_alphabets(seed) -> None:
    torch.manual_seed(seed)
    # Two tiles per graph without repetition, so that the ten graphs cover every tile.
    names = random.Random(0).sample(sorted(TILES), len(TILES))[2 * seed : 2 * seed + 2]
    names += random.Random(seed).choices(sorted(TILES), k=2)
    stem = [ConvBN(3, 4, 3), LIF(v_threshold=0.3)]
    graph, x, y = traced(Chain(*stem, *(TILES[name]() for name in names)))
    facts = interpret(graph)
    assert discrete(facts) >= 2
    assert not facts.unknown
    assert list(broken_claims(graph, facts, x, y)) == []


def test_integers_as_input_are_followed_like_spikes() -> None:
    torch.manual_seed(0)
    model = Chain(PerStep(nn.AvgPool2d(3, 1, 1)), ConvBN(3, 4, 3), LIF(v_threshold=0.3))
    graph, *_ = traced(model)
    x, y = torch.randint(4, (2, 2, 2, 3, 8, 8)).float()
    facts = interpret(graph, Alphabet(0, 3))
    assert discrete(facts) >= 3
    assert list(broken_claims(graph, facts, x, y)) == []
    lies = list(broken_claims(graph, interpret(graph, Alphabet(0, 2)), x, y))
    assert lies[0].endswith(" is not in {0..2}")


# Tokens that halt have no graph to make claims about.
@pytest.mark.parametrize("name", sorted({*list_models("*_tiny")} - {"stas_tiny"}))
def test_every_family_keeps_its_claims(name) -> None:
    model = enliven(create_model(name)).eval()
    x, y = randn(2, 2, 1, 3, *(model.image_size or (32, 32)), seed=1)
    graph = capture(fold(model), x)
    facts = interpret(graph)
    assert not facts.unknown
    assert list(broken_claims(graph, facts, x, y)) == []


class Everything(nn.Module):
    """Every kind of rule once, on spikes, so that a wrong one shows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 4, 3)
        self.neuron = LIF(v_threshold=0.3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1) * 1.3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s = self.neuron(self.stem(x / 2))
        pooled = F.avg_pool2d(s.flatten(0, 1), 2)
        return (
            F.relu(x),
            F.max_pool2d(x[0], 2),
            x * x,
            1 / (x - 100),
            s + s,
            s - 2,
            1 - 3 * s,
            -s,
            F.relu(s - 1),
            s * self.gain,
            s / 2,
            s.sum(2),
            s.mean((-2, -1)),
            pooled,
            F.adaptive_avg_pool2d(s[0], 4),
            torch.cat([s, 3 * s]),
            torch.stack([s, -s]),
            F.pad(s, (1, 1), value=2.0),
            s @ s.mT,
            torch.einsum("tbcij,tbckj->tbik", s, s),
            torch.baddbmm(s[0, 0], s[0, 0], s[1, 0]),
            torch.addmm(s[0, 0].reshape(16, 16), s.reshape(16, 64), s.reshape(64, 16)),
            torch.softmax(s, 2),
            s.new_full((3,), 0.5) + 1,
        )


@pytest.fixture(scope="module")
def everything():
    torch.manual_seed(0)
    return traced(Everything())


def test_the_graph_with_everything_keeps_its_claims(everything) -> None:
    graph, x, y = everything
    facts = interpret(graph)
    assert [op_name(node) for node in facts.unknown] == ["aten::reciprocal", "aten::softmax"]
    assert list(broken_claims(graph, facts, x, y)) == []


BREAKABLE = (
    "add sub rsub neg mul div sum mean avg_pool2d adaptive_avg_pool2d pad matmul baddbmm addmm "
    "conv2d softmax"
)


@pytest.mark.parametrize("name", BREAKABLE.split())
def test_a_rule_that_merely_keeps_is_noticed(everything, monkeypatch, name) -> None:
    def keep(_, *args, **__):
        return next(a.alphabet for a in args if isinstance(a, Value))

    # An analog operand would stay analog: say of it that it is binary.
    def claim(node, *args, **options):
        return keep(node, *args, **options) or Alphabet(0, 1)

    monkeypatch.setitem(RULES, f"aten::{name}", claim if name == "conv2d" else keep)
    graph, x, y = everything
    assert list(broken_claims(graph, interpret(graph), x, y))


@pytest.mark.parametrize("name", ["cat", "stack", "einsum"])
def test_joining_that_forgets_a_part_is_noticed(everything, monkeypatch, name) -> None:
    def forget(_, *args) -> Alphabet | None:
        return next(parts for parts in args if isinstance(parts, list | tuple))[0].alphabet

    monkeypatch.setitem(RULES, f"aten::{name}", forget)
    graph, x, y = everything
    assert list(broken_claims(graph, interpret(graph), x, y))


def test_a_neuron_that_lies_is_noticed(everything, monkeypatch) -> None:
    rule = OUTPUT_ALPHABETS["spikeformers::lif"]

    def silent(*arguments):
        return Alphabet(0, 0), *rule(*arguments)[1:]

    monkeypatch.setitem(OUTPUT_ALPHABETS, "spikeformers::lif", silent)
    graph, x, y = everything
    assert "getitem is not in {0,0}" in list(broken_claims(graph, interpret(graph), x, y))


@pytest.mark.parametrize("name", ["relu", "max_pool2d"])
def test_a_maximum_taken_for_affine_is_noticed(everything, monkeypatch, name) -> None:
    monkeypatch.delitem(MAXIMA, f"aten::{name}")
    graph, x, y = everything
    lies = list(broken_claims(graph, interpret(graph), x, y))
    assert lies == [f"{name} is not affine in the image"]


def test_a_product_taken_for_affine_is_noticed(everything, monkeypatch) -> None:
    monkeypatch.setattr(room, "PRODUCTS", {})
    graph, x, y = everything
    lies = list(broken_claims(graph, interpret(graph), x, y))
    assert lies == ["mul is not affine in the image"]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (lambda _, s: s + s, Alphabet(0, 2)),
        (lambda _, s: 1 - s, Alphabet(0, 1)),
        (lambda _, s: s - s.roll(1, 3), Alphabet(-1, 1)),
        (lambda _, s: 0.25 * (s + s), Alphabet(0, 2, 0.25)),
        (lambda self, s: self.weight * s, Alphabet(0, 1, None)),
        (lambda _, s: F.pad(s, (1, 1)), Alphabet(0, 1)),
        (lambda self, s: F.pad(self.weight * s, (1, 1)), Alphabet(0, 1, None)),
        (lambda self, s: self.weight * s + 1, None),
        (lambda _, s: torch.einsum("tbcij,tbdij->tbcd", s, s + s), Alphabet(0, 128)),
        (lambda _, s: torch.einsum("...ij,...kj", s, s), Alphabet(0, 8)),
        (lambda _, s: torch.einsum("tbcij->tbc", s), None),
        (lambda _, s: torch.einsum("...ij,...jk->ik", s, s), None),
        (lambda _, s: torch.bmm(s[0, 0], s[1, 0]), Alphabet(0, 8)),
        (lambda _, s: torch.baddbmm(s[0, 0], s[0, 0], s[1, 0]), Alphabet(0, 9)),
        (lambda _, s: torch.addmm(s[0, 0, 0], s[0, 0, 1], s[1, 0, 2]), Alphabet(0, 9)),
        (lambda _, s: torch.addmm(s[0, 0, 0], s[0, 0, 1], s[1, 0, 2], beta=2), None),
        (lambda _, s: s.sum((-2, -1)), Alphabet(0, 64)),
        (lambda _, s: s.mean((-2, -1)), Alphabet(0, 64, 1 / 64)),
        (lambda _, s: s @ (s + s), Alphabet(0, 16)),
        (lambda _, s: s.transpose(3, 4).reshape(2, 2, -1)[:1], Alphabet(0, 1)),
        (lambda _, s: s * (1 - s), Alphabet(0, 1)),
        (lambda _, s: s + 0.5, None),
        (lambda _, s: s + 0.5 * s, None),
        (lambda _, s: torch.add(s, s, alpha=2), None),
        (lambda _, s: s.sigmoid(), None),
    ],
)
def test_alphabets_are_as_tight_as_the_plan_says(formula, expected) -> None:
    graph, *_ = traced(Chain(ConvBN(3, 4, 3), LIF(), Formula(formula)))
    result = graph.nodes[-1].args[0][0]
    assert interpret(graph).values[result] == Value(Origin.SIGNAL, expected)
