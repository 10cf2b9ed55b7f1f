"""What holds for every tile: inputs stay as they are, time steps and samples stay apart."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from spikeformers.layers import (
    QKCA,
    QKTA,
    SDSA1,
    SDSA2,
    SDSA3,
    SDSA4,
    SPEDS,
    Branch,
    Chain,
    ChannelConv,
    ChannelMLP,
    ClassificationHead,
    Conv,
    ConvBN,
    DistillationHead,
    LayerScale,
    Linear,
    LinearBN,
    NormFirstRepConv,
    PerStep,
    Renormed,
    RepConv,
    RepLinear,
    SepConv,
    SpikeSepConv,
    Trunk,
    fold,
    once,
    sew,
    vanilla,
)
from spikeformers.neurons import LIF
from spikeformers.types import Outputs
from tests.helpers import assert_same, enliven, randn, random_spikes

TILES: dict[str, Callable[[], nn.Module]] = {
    "QKTA": lambda: QKTA(4, 2),
    "QKCA": lambda: QKCA(4, 2),
    "SPEDS": lambda: SPEDS((4, 4, 4), (1, 1)),
    "SDSA1": lambda: SDSA1(4, 2),
    "SDSA2": lambda: SDSA2(4, 2),
    "SDSA3": lambda: SDSA3(4, 2),
    "SDSA4": lambda: SDSA4(4, 2),
    "SepConv": lambda: SepConv(4),
    "SepConv 3x3": lambda: SepConv(4, expansion=1, kernel_size=3),
    "SpikeSepConv": lambda: SpikeSepConv(4),
    "ChannelConv": lambda: ChannelConv(4),
    "ChannelConv of RepConv": lambda: ChannelConv(4, 2, conv=RepConv),
    "ChannelMLP": lambda: ChannelMLP(4),
    "ConvBN": lambda: ConvBN(4, 4, 3),
    "LinearBN": lambda: LinearBN(4, 4),
    "RepConv": lambda: RepConv(4, 4),
    "RepLinear": lambda: RepLinear(4, 6, 4),
    "Renormed": lambda: Renormed(RepLinear(4, 6, 4), 4),
    "LayerScale": lambda: LayerScale(LinearBN(4, 4), 4),
    "NormFirstRepConv": lambda: NormFirstRepConv(4, 4),
    "Conv": lambda: Conv(4, 4, 3, padding=1),
    "Linear": lambda: Linear(4, 4),
    "PerStep": lambda: PerStep(nn.MaxPool2d(3, 1, 1)),
    "Trunk": lambda: Trunk([dict(mlp=Branch(LIF(), ChannelMLP(4)))], drop_path=0.5),
    "sew": lambda: sew(Chain(ConvBN(4, 4, 1), LIF())),
    "vanilla": lambda: vanilla(ConvBN(4, 4, 1), LIF()),
}
HEADS: dict[str, Callable[[], nn.Module]] = {
    "ClassificationHead": lambda: ClassificationHead(4, 3),
    "DistillationHead": lambda: DistillationHead(4, 3),
}

each_tile = pytest.mark.parametrize("make", TILES.values(), ids=TILES)
each_part = pytest.mark.parametrize(
    "make", [*TILES.values(), *HEADS.values()], ids=[*TILES, *HEADS]
)


@each_tile
def test_the_shape_stays(make: Callable[[], nn.Module]) -> None:
    for shape in ((1, 1, 4, 3, 3), (3, 2, 4, 5, 7)):
        assert make().eval()(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("training", [True, False])
@each_part
def test_the_input_stays_as_it_is(make: Callable[[], nn.Module], training: bool) -> None:
    tile = enliven(make()).train(training)
    x = random_spikes(3, 2, 4, 5, 7, seed=1)
    kept, leaf = x.clone(), x.requires_grad_()
    y = tile(leaf)
    y = y.logits if isinstance(y, Outputs) else y
    y.square().sum().backward()
    assert torch.equal(x, kept)


def test_the_input_of_once_and_of_folded_tiles_stays_as_it_is() -> None:
    x = random_spikes(1, 2, 4, 5, 7, seed=1)
    kept = x.clone()
    once(ConvBN(4, 4, 3).double())(x)
    for make in TILES.values():
        fold(enliven(make()).eval())(x)
    assert torch.equal(x, kept)


@each_part
def test_samples_do_not_see_each_other_in_eval_mode(make: Callable[[], nn.Module]) -> None:
    tile, x = enliven(make()).eval(), random_spikes(3, 4, 4, 5, 7, seed=1)
    together = tile(x)
    for b in range(4):
        assert_same(together[:, b : b + 1], tile(x[:, b : b + 1]))


@each_part
def test_the_past_does_not_see_the_future(make: Callable[[], nn.Module]) -> None:
    tile, x = enliven(make()).eval(), random_spikes(4, 2, 4, 5, 7, seed=1)
    assert_same(tile(x)[:2], tile(x[:2]))


def test_the_classification_head_reads_spikes_of_the_mean_membrane() -> None:
    head = enliven(ClassificationHead(4, 3))
    x = 3 * randn(3, 2, 4, 5, 7, seed=1) + 1
    spikes = LIF()(x.mean((-2, -1)))
    assert 0 < spikes.mean() < 1
    assert_same(head(x), spikes @ head.linear.weight.T + head.linear.bias)


def test_the_distillation_head_has_two_outputs_in_training_and_their_mean_in_eval_mode() -> None:
    head = enliven(DistillationHead(4, 3))
    x = 3 * randn(3, 2, 4, 5, 7, seed=1) + 1
    outputs = head(x)
    assert isinstance(outputs, Outputs) and set(outputs.aux) == {"kd"}
    spikes = head.spikes(x)
    assert_same(outputs.logits, head.linear(spikes))
    assert_same(outputs.aux["kd"], head.linear_kd(spikes))
    assert not torch.equal(outputs.logits, outputs.aux["kd"])
    assert_same(head.eval()(x), (outputs.logits + outputs.aux["kd"]) / 2)


def test_classifiers_start_small() -> None:
    torch.manual_seed(0)
    head = DistillationHead(400, 100)
    for linear in (head.linear, head.linear_kd):
        assert abs(linear.weight.std() - 0.02) < 0.001
        assert (linear.bias == 0).all()
