"""The peer of the benchmarks is the same network as ours, on SpikingJelly's layers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from benchmarks.peer import MetaSpikeFormer
from spikingjelly.activation_based import functional

import spikeformers as sf
from spikeformers.layers import BatchNorm
from spikeformers.neurons import LIF

SIZE = dict(dims=(8, 8, 16, 16, 24), depths=(1, 1, 2, 2, 1), heads=4, num_classes=10)


def models(v_threshold: float = 1.0) -> tuple[torch.nn.Module, MetaSpikeFormer]:
    torch.manual_seed(0)
    ours = sf.create_model(
        "meta_spikeformer_15m", neuron=partial(LIF, v_threshold=v_threshold), **SIZE
    ).double()
    for module in ours.modules():
        if isinstance(module, BatchNorm):  # As they come, narrow networks are nearly silent.
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, 0.0, 0.5)
    theirs = MetaSpikeFormer(v_threshold=v_threshold, **SIZE).double()
    theirs.take_weights(ours)
    return ours, theirs


def test_the_published_size_has_as_many_parameters() -> None:
    with torch.device("meta"):
        ours, theirs = sf.create_model("meta_spikeformer_15m"), MetaSpikeFormer()
    shapes = [[p.numel() for p in model.parameters()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(shapes[0]) == 15_112_208


@pytest.mark.parametrize("v_threshold", [1.0, 0.6])
def test_outputs_gradients_and_statistics_are_equal(v_threshold: float) -> None:
    ours, theirs = models(v_threshold)
    x = torch.randn(3, 2, 3, 64, 48, dtype=torch.float64)
    labels = torch.tensor([1, 7])
    for _ in range(2):  # The second step starts from rest again.
        outputs = [model(x) for model in (ours, theirs)]
        functional.reset_net(theirs)
    assert outputs[0].std() > 1e-3
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for y in outputs:
        F.cross_entropy(y.mean(0), labels).backward()
    # A bias in front of a norm has a gradient of rounding errors alone.
    largest = max(float(p.grad.abs().max()) for p in ours.parameters())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        theirs_like_mine = other.grad.view_as(mine)
        torch.testing.assert_close(theirs_like_mine, mine.grad, rtol=0, atol=1e-12 * largest)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-9, atol=1e-9)
