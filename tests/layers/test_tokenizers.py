"""Tokenizers: the order of their parts, their maps, and what each convolution sees."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers import SPS, ConvBN, SpikingTokenizer, fire_then_pool, pool_then_fire
from tests.helpers import enliven, randn

TOKENIZERS = [SPS, SpikingTokenizer]
ORDERS = {
    fire_then_pool: ["conv", "neuron", "pool"],
    pool_then_fire: ["conv", "pool", "neuron"],
}


def inputs_of_convs(tokenizer: nn.Module, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for module in tokenizer.modules():
        if isinstance(module, ConvBN):
            module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        tokenizer(x)
    return seen


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("order", ORDERS)
def test_only_the_last_steps_pool_and_in_the_chosen_order(tokenizer: Any, order: Any) -> None:
    parts = [[*step._modules] for step in [*tokenizer(3, 16, 2, order)][:4]]
    assert parts == 2 * [["conv", "neuron"]] + 2 * [ORDERS[order]]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("pools", [0, 2, 4])
def test_each_pool_halves_the_map_and_rounds_up(tokenizer: Any, pools: int) -> None:
    y = tokenizer(3, 16, pools)(torch.zeros(2, 1, 3, 37, 64))
    assert y.shape == (2, 1, 16, -(-37 // 2**pools), 64 // 2**pools)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_convolution_but_the_first_sees_binary_spikes(tokenizer: Any, order: Any) -> None:
    image, *rest = inputs_of_convs(
        enliven(tokenizer(3, 16, 2, order)), randn(3, 2, 3, 16, 24, seed=1)
    )
    assert len(rest) == 4 and len(image.unique()) > 2
    for spikes in rest:
        assert spikes.unique().tolist() == [0, 1]


def test_the_position_embedding_adds_spikes_to_spikes() -> None:
    y = enliven(SPS(3, 16, 2))(randn(3, 2, 3, 16, 24, seed=1))
    assert y.unique().tolist() == [0, 1, 2]


def test_pooling_currents_gives_the_gradient_to_the_largest_one() -> None:
    """Both currents fire: pooled as spikes, the first wins; pooled as currents, the larger one."""
    for order, winner in ((fire_then_pool, 0), (pool_then_fire, 1)):
        step = SPS(3, 16, 1, order)[3]
        parts = list(step.children())[1:]
        current = torch.tensor([2.5, 2.6]).view(1, 1, 1, 1, 2).requires_grad_()
        nn.Sequential(*parts)(current).sum().backward()
        grad = current.grad
        assert grad is not None and grad.flatten()[winner] > 0
        assert grad.flatten()[1 - winner] == 0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_bad_sizes_are_named(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="dim=12: the tokenizer needs a multiple of 8"):
        tokenizer(3, 12)
    with pytest.raises(InputError, match="pools=5: expected 0 to 4"):
        tokenizer(3, 16, 5)
