"""Synapses in series: what they compute, and that one linear map computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spikeformers.layers import LayerScale, Linear, LinearBN, Renormed, RepLinear, fold
from tests.helpers import assert_same, enliven, randn, random_spikes

SYNAPSES: dict[str, Callable[[], nn.Module]] = {
    "RepLinear": lambda: RepLinear(4, 7, 3),
    "Renormed": lambda: Renormed(RepLinear(4, 6, 3), 3),
    "LayerScale": lambda: LayerScale(LinearBN(4, 3, bias=True), 3),
    "all": lambda: LayerScale(Renormed(RepLinear(4, 6, 3), 3), 3),
}


@pytest.mark.parametrize(
    "x", [random_spikes(3, 2, 4, 5, 2), random_spikes(3, 2, 4)], ids=["2d", ""]
)
@pytest.mark.parametrize("make", SYNAPSES.values(), ids=SYNAPSES)
def test_folds_to_one_linear_map(make: Callable[[], nn.Module], x: Tensor) -> None:
    synapse = enliven(make()).eval()
    folded = fold(synapse)
    assert type(folded) is Linear
    assert_same(folded(x), synapse(x))


def test_norms_see_time_and_batch_as_one_axis() -> None:
    synapse, x = enliven(Renormed(RepLinear(4, 6, 3), 3)), randn(3, 2, 4, 5)
    y = synapse(x)
    assert_same(y.mean((0, 1, 3)), synapse.norm.bias)
    one_step = synapse(x.flatten(0, 1)[None])
    assert_same(y.flatten(0, 1), one_step[0])


def test_a_layer_scale_starts_tiny_and_is_learned() -> None:
    synapse, x = LayerScale(LinearBN(4, 3), 3), random_spikes(3, 2, 4, 5).float()
    torch.testing.assert_close(synapse(x), 1e-6 * synapse.synapse(x))
    synapse(x).square().sum().backward()
    assert synapse.gain.shape == (3,) and (synapse.gain.grad != 0).all()
