"""One dense kernel equals the depthwise and the pointwise convolution it replaces."""

import pytest
import torch
from torch import nn

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.layers import Chain, Conv, ConvBN, SepConv, fold
from spikeformers.models import create_model
from spikeformers.neurons import LIF
from spikeformers.transform import merge_depthwise
from tests.helpers import assert_lively, assert_same, enliven, randn, spikes_of


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (2, 2, 0)])
def test_the_dense_kernel_equals_both(bias, side, stride, padding) -> None:
    depthwise = Conv(4, 4, side, stride, padding, groups=4, bias=bias)
    model = enliven(Chain(depthwise=depthwise, project=Conv(4, 6, 1, bias=not bias))).eval()
    merged = merge_depthwise(model)
    assert [name for name, _ in merged.named_children()] == ["project"]
    assert merged.project.weight.shape == (6, 4, side, side)
    x = randn(2, 3, 4, 9, 8)
    assert_same(merged(x), model(x))


def test_meta_spikeformer_fires_alike_and_becomes_strictly_spike_driven() -> None:
    model = enliven(create_model("meta_spikeformer_tiny")).eval()
    merged = merge_depthwise(model)
    x = randn(2, 2, 3, 32, 32)
    spikes, again = (spikes_of(net, lambda net=net: net(x)) for net in (model, merged))
    assert_lively(spikes)
    assert spikes.keys() == again.keys()
    for path, ours in again.items():
        assert torch.equal(ours, spikes[path]), path
    assert_same(merged(x), model(x))


@pytest.mark.compile
def test_the_audit_sees_additions_only() -> None:
    merged = merge_depthwise(create_model("meta_spikeformer_tiny").eval())
    report = sf.audit(merged, torch.zeros(2, 1, 3, 32, 32))
    assert report.verdict == "strictly spike-driven"
    assert not any("depthwise" in row.path for row in report.rows)


def test_a_dense_kernel_has_a_weight_for_each_place_and_pair() -> None:
    parts = merge_depthwise(SepConv(8, kernel_size=7).eval())
    assert parts.project.weight.numel() == 49 * 16 * 8


@pytest.mark.parametrize(
    "between",
    [[LIF()], [nn.Identity()], [Conv(4, 4, 1, groups=2)]],
    ids=["neuron", "another module", "grouped"],
)
def test_what_does_not_follow_directly_stays(between) -> None:
    model = Chain(ConvBN(4, 4, 3, groups=4), *between, ConvBN(4, 6, 1)).eval()
    names = [name for name, _ in fold(model).named_parameters()]
    assert [name for name, _ in merge_depthwise(model).named_parameters()] == names


def test_training_mode_is_refused_and_the_model_left_alone() -> None:
    model = SepConv(4)
    with pytest.raises(InputError, match="eval mode"):
        merge_depthwise(model)
    before = list(model.state_dict())
    merge_depthwise(model.eval())
    assert list(model.state_dict()) == before
