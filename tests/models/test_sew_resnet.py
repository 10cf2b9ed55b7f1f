"""SEW-ResNet: what the three ways to connect do to a stream of spikes, and its baseline."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import Chain, once
from spikeformers.models import Backbone
from spikeformers.models.sew_resnet import bottleneck_body, sew_block
from tests.golden import cases
from tests.helpers import assert_same, enliven, gradients, randn, spikes_of, statistics

TINY = "sew_resnet_tiny"


def connected(connect: str) -> Backbone:
    model = sf.create_model(TINY, block=partial(sew_block, connect=connect))
    return enliven(model).eval()


@pytest.mark.parametrize(("connect", "highest"), [("add", 3), ("and", 1), ("iand", 1)])
def test_spikes_join_to_integers_or_stay_binary(connect: str, highest: int) -> None:
    x = randn(3, 2, 3, 48, 64, seed=1)
    with torch.no_grad():
        maps = connected(connect).features(x)
    values = set(torch.cat([m.flatten() for m in maps]).tolist())
    assert values == set(range(highest + 1))


@pytest.mark.parametrize("connect", ["add", "iand"])
def test_a_silent_body_makes_a_block_the_identity(connect: str) -> None:
    model = connected(connect)
    block = model.stages[1].blocks[1]
    with torch.no_grad():
        last = block.fn[-1].synapse.norm
        last.weight.zero_()
        last.bias.zero_()
        x = (randn(2, 1, 12, 6, 8, seed=2) > 0).double()
        assert torch.equal(block(x), x)


def test_every_convolution_of_a_sew_block_drives_a_neuron_before_the_sum() -> None:
    x = randn(2, 1, 3, 32, 32, seed=1)
    for name, neurons in ((TINY, 11), ("spiking_resnet_tiny", 9)):
        model = enliven(sf.create_model(name)).eval()
        with torch.no_grad():
            assert len(spikes_of(model, lambda model=model: model(x))) == neurons
            highest = max(m.max() for m in model.features(x))
        assert highest == (1 if name == "spiking_resnet_tiny" else 3)


def test_the_stem_sees_a_static_image_once() -> None:
    image = randn(1, 2, 3, 32, 32, seed=1)
    every_step, first_step = (
        enliven(sf.create_model(TINY, stem=stem)).train() for stem in (Chain, once)
    )
    x = image.expand(3, -1, -1, -1, -1)
    assert_same(first_step(x), every_step(x))
    one, three = (statistics(m.stages[0].embed.conv) for m in (first_step, every_step))
    # The mean is the same; the unbiased variance knows how many images there were.
    assert_same(one["stem.norm.running_mean"], three["0.norm.running_mean"])
    assert (one["stem.norm.running_var"] != three["0.norm.running_var"]).all()
    with pytest.raises(InputError, match="static"):
        first_step(torch.cat([image, -image]))


def test_bottlenecks_are_a_quarter_as_wide() -> None:
    model = enliven(sf.create_model(TINY, body=bottleneck_body))
    y = model(randn(2, 2, 3, 32, 32, seed=1))
    (y * randn(*y.shape, seed=2)).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    widths = [m.synapse.conv.out_channels for m in model.stages[0].blocks[0].fn]
    assert widths == [2, 2, 8]


def test_convolutions_start_as_in_a_resnet() -> None:
    torch.manual_seed(0)
    conv = sf.create_model(TINY, dims=(8, 12, 64)).stages[2].blocks[0].fn[1].synapse.conv
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (TINY, dict(depths=(1, 1)), "dims and depths .* 3 and 2"),
        (TINY, dict(dims=(8, 12, 18), body="bottleneck_body"), "dims has 18"),
        ("spiking_resnet_tiny", dict(depths=(1,)), "dims and depths .* 3 and 1"),
    ],
)
def test_bad_arguments_are_named(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.create_model(name, **overrides)


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("basic_add_t4", dict(block="Other"), "block='Other'"),
        ("basic_add_t4", dict(connect_f="add"), "connect_f='add'"),
        ("plain_basic_t4", dict(block="Bottleneck"), "block='Bottleneck'"),
        ("gesture_add_t4", dict(connect_f="OR"), "connect_f='OR'"),
        ("gesture_add_t4", dict(layer_list=[dict(channels=8, k_pool=3)]), "layer_list has"),
    ],
)
def test_bad_official_arguments_are_named(
    case: str, arguments: dict[str, Any], message: str
) -> None:
    (found,) = (c for c in cases("sew_resnet") if c.name.endswith(f"__{case}"))
    with pytest.raises(ConfigError, match=message):
        sf.from_official({}, found.source, **{**found.facts["kwargs"], **arguments})
