"""Networks of SpikingJelly's layers: equal answers, and the audit's verdict on them."""

import sys
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.analysis import from_spikingjelly
from spikeformers.errors import InputError, MissingExtraError
from tests.helpers import assert_same, randn

pytestmark = pytest.mark.compile

T, B = 4, 2


def images() -> Tensor:
    return randn(T, B, 3, 8, 8)


def lively(model: nn.Module) -> nn.Module:
    """Give norms gains at which neurons fire, and statistics of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 1.5, 2.5)
            nn.init.uniform_(module.bias, 0.2, 0.6)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return model.double().eval()


def answers_alike(model: nn.Module, x: Tensor) -> nn.Module:
    """Convert, compare the answers with a fresh run of the original, and see that they differ."""
    converted = from_spikingjelly(model, x)
    functional.reset_net(model)
    expected = model(x)
    functional.reset_net(model)
    assert_same(converted(x), expected)
    assert len(expected.unique()) > 1
    return converted


def conv_net(**options: Any) -> nn.Sequential:
    parts = [
        layer.Conv2d(3, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.LIFNode(**options),
        layer.MaxPool2d(2),
        layer.Conv2d(8, 8, 3, padding=1),
        layer.BatchNorm2d(8),
        neuron.ParametricLIFNode(init_tau=1.5),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Dropout(0.5),
        layer.Linear(8 * 4, 5),
        neuron.IFNode(v_threshold=0.1, v_reset=None),
    ]
    model = nn.Sequential(*parts)
    functional.set_step_mode(model, "m")
    return lively(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tau": 3.0, "decay_input": False, "v_reset": None},
        {"tau": 1.5, "v_threshold": 0.7, "v_reset": -0.2, "surrogate_function": surrogate.ATan()},
    ],
    ids=["default", "soft reset", "reset below zero"],
)
def test_every_neuron_and_stateless_layer(options: dict[str, Any]) -> None:
    model = conv_net(**options)
    names = {name for name, _ in model.named_modules() if "surrogate" not in name}
    converted = answers_alike(model, images())
    assert {name for name, _ in converted.named_modules()} == names
    report = sf.audit(converted, images())
    assert [(row.path, row.verdict) for row in report.rows] == [
        ("0", "encode"),
        ("4", "AC"),
        ("10", "ACx"),
    ]
    assert report.verdict == "spike-driven"
    assert report.notes == (
        "1: the norm merges into the weights of 0",
        "5: the norm merges into the weights of 4",
        "7: the factor 0.25 of avg_pool2d merges into the weights of 10",
    )


class Block(nn.Module):
    """A residual block as their model files write it: parts by name, called in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)
        self.sn1 = neuron.IFNode()
        self.conv2, self.bn2 = layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)
        self.sn2 = neuron.IFNode()

    def forward(self, x: Tensor) -> Tensor:
        y = self.sn1(self.bn1(self.conv1(x)))
        return x + self.sn2(self.bn2(self.conv2(y)))


def test_a_model_with_a_forward_of_its_own() -> None:
    stem = layer.Conv2d(3, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.IFNode()
    model = nn.Sequential(*stem, Block(), Block())
    functional.set_step_mode(model, "m")
    report = sf.audit(answers_alike(lively(model), images()), images())
    verdicts = {row.path: row.verdict for row in report.rows}
    assert verdicts == {
        "0": "encode",
        "3.conv1": "AC",
        "3.conv2": "AC",
        "4.conv1": "ACx",
        "4.conv2": "AC",
    }


def test_integers_of_several_levels() -> None:
    stem = layer.Conv2d(3, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.ILIFNode()
    model = nn.Sequential(*stem, layer.Conv2d(4, 2, 1))
    functional.set_step_mode(model, "m")
    (_, row) = sf.audit(answers_alike(lively(model), images()), images()).rows
    assert (row.operands[0], row.verdict) == ("{0..4}", "ACx")


def test_containers_that_call_step_by_step() -> None:
    stateless = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    model = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        layer.MultiStepContainer(neuron.LIFNode(), nn.Sequential(*stateless, neuron.IFNode())),
        layer.StepModeContainer(True, "m", nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), neuron.IFNode()),
    )
    report = sf.audit(answers_alike(lively(model), images()), images())
    assert [row.verdict for row in report.rows] == ["encode", "AC", "AC"]
    assert report.verdict == "strictly spike-driven"


def test_the_membranes_of_an_earlier_call_do_not_count() -> None:
    model = conv_net()
    fresh = from_spikingjelly(model, images())
    model(images())
    assert_same(from_spikingjelly(model, images())(images()), fresh(images()))


class Twice(nn.Module):
    """One neuron, called twice: SpikingJelly's goes on from where its first call stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.sn = neuron.IFNode(v_threshold=3.0, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(x) + self.sn(x)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sn = neuron.IFNode()

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(x)


SMOOTH = surrogate.Sigmoid(spiking=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (neuron.QIFNode(step_mode="m"), "QIFNode, which has no equal here"),
        (nn.Sequential(neuron.LIFNode()), r"0 \(LIFNode\) has step_mode='s': call functional"),
        (neuron.IFNode(surrogate_function=SMOOTH, step_mode="m"), "IFNode, which has no equal"),
        (layer.SynapseFilter(step_mode="m"), "SynapseFilter, which has no equal here"),
        (Twice(), "answers differently"),
        (layer.MultiStepContainer(Steps()), "0 is Steps, called step by step with neurons inside"),
        (layer.StepModeContainer(True, "s", neuron.IFNode()), "has step_mode='s'"),
    ],
    ids=["another neuron", "one step", "smooth", "filter", "twice", "own forward", "container"],
)
def test_what_has_no_equal_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_spikingjelly(model, 2 * images())


def test_without_spikingjelly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    with pytest.raises(MissingExtraError, match=r"spikeformers\[spikingjelly\]"):
        from_spikingjelly(nn.Identity(), images())
