"""Our counts against SpikingJelly's: equal on binary networks, and why not elsewhere.

SpikingJelly looks at the values that it sees: where all are 0 or 1 it counts additions, else dense
multiplications. This library decides by what values there can be.
"""

import pytest
import torch
from spikingjelly.activation_based.op_counter import (
    DispatchCounterMode,
    MACCounter,
    SynOpCounter,
)
from torch import Tensor, nn

from spikeformers.analysis import energy
from spikeformers.layers import Chain, ConvBN, PerStep, fold
from spikeformers.models import create_model
from spikeformers.neurons import IF, ILIF, LIF
from tests.helpers import enliven, randn

pytestmark = pytest.mark.compile


def theirs(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return additions and multiplications per sample as SpikingJelly counts them."""
    additions, products = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([additions, products]):
        fold(model.eval())(x)
    return tuple(counter.get_total() / x.shape[1] for counter in (additions, products))


def ours(model: nn.Module, x: Tensor) -> tuple[float, float]:
    total = energy(model, x, first_layer="per_step").total
    return total["AC"], total["MAC"]


def images() -> Tensor:
    return randn(3, 2, 3, 9, 8)


def network(neuron: nn.Module, *between: nn.Module) -> nn.Module:
    """An image, a neuron, something in between, and two convolutions, one of them grouped."""
    model = Chain(ConvBN(3, 4, 3, stride=2), neuron, *between)
    model.extend([ConvBN(4, 8, 3, groups=2), IF(v_threshold=0.5), ConvBN(8, 4, 1)])
    return enliven(model)


def test_binary_convolutions_agree() -> None:
    model = network(LIF(v_threshold=0.5), PerStep(nn.MaxPool2d(2)))
    assert ours(model, images()) == theirs(model, images())
    assert min(ours(model, images())) > 0


def test_a_spiking_transformer_agrees_but_for_products_and_sums_of_spikes() -> None:
    # SDT: masks multiply nothing here and are no matrix products there.
    model = enliven(create_model("sdt_tiny"))
    x = randn(2, 1, 3, 32, 32)
    report = energy(model, x, first_layer="per_step")
    sums = sum(row.count for row in report.rows if row.verdict == "sum")
    additions, products = theirs(model, x)
    assert report.total["AC"] - sums == additions > 0
    assert report.total["MAC"] == products
    # Sums of masked spikes over tokens add too, but are no synaptic operation there.
    assert sums > 0


def test_integers_are_dense_multiplications_there_and_repeated_additions_here() -> None:
    model = network(ILIF(levels=4))
    additions, products = ours(model, images())
    peer_additions, peer_products = theirs(model, images())
    assert additions > peer_additions
    # The same reading, asked for: dense products wherever integers meet weights.
    total = energy(model, images(), first_layer="per_step", integers="mac").total
    assert (total["AC"], total["MAC"]) == (peer_additions, peer_products)
    assert products < peer_products


class Difference(nn.Module):
    """Ternary: spikes less those of the step before."""

    def forward(self, s: Tensor) -> Tensor:
        return s - s.roll(1, 0)


class Half(nn.Module):
    """Scaled: an average of spikes is a multiple of a half."""

    def forward(self, s: Tensor) -> Tensor:
        return 0.5 * s


@pytest.mark.parametrize("between", [Difference(), Half()], ids=["ternary", "scaled"])
def test_signs_and_scales_are_multiplications_there_and_additions_here(between: nn.Module) -> None:
    model = network(IF(v_threshold=0.5), between)
    report = energy(model, images(), first_layer="per_step")
    (row,) = (row for row in report.rows if row.path == "3" and row.unit == "AC")
    additions, products = theirs(model, images())
    assert report.total["AC"] - row.count == additions
    dense = 3 * 8 * 5 * 4 * 2 * 9
    assert products - report.total["MAC"] == dense > row.count


def test_a_silent_membrane_looks_binary_there_and_stays_analog_here() -> None:
    model = Chain(nn.ReLU(), ConvBN(3, 4, 1))
    silent = -torch.ones(1, 1, 3, 4, 4)
    assert theirs(model, silent) == (0, 0)
    assert ours(model, silent) == (0, 4 * 3 * 16)
