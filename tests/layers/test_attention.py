"""Attention operators against loops over their definitions."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikeformers.errors import InputError
from spikeformers.layers import QKCA, QKTA, SDSA1, SDSA2, SDSA3, SDSA4, matrix_product
from spikeformers.neurons import IF, LIF, LearnedThresholdLIF
from tests.helpers import (
    assert_lively,
    assert_same,
    enliven,
    fire_in_numpy,
    integrate,
    leaky,
    random_spikes,
)

T, B, C, H, W, HEADS = 4, 2, 6, 3, 5, 2


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what `module` is given during `run()`."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    run()
    hook.remove()
    assert len(seen) == 1
    return seen[0]


def sums_over_tokens(terms: np.ndarray) -> np.ndarray:
    sums = np.zeros(terms.shape[:3])
    for t, b, c in np.ndindex(*sums.shape):
        sums[t, b, c] = sum(terms[t, b, c].flat)
    return sums


def product_of_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`q (k^T v)` token by token; channel `c` belongs to head `c // (C / heads)`."""
    y, width = np.zeros_like(q), C // HEADS
    tokens = list(np.ndindex(H, W))
    for t, b, head in np.ndindex(T, B, HEADS):
        channels = range(head * width, (head + 1) * width)
        for c, n in ((c, n) for c in channels for n in tokens):
            for other in tokens:
                agreement = sum(q[t, b, e, *n] * k[t, b, e, *other] for e in channels)
                y[t, b, c, *n] += agreement * v[t, b, c, *other]
    return y


def sums_over_heads(terms: np.ndarray) -> np.ndarray:
    """Give each channel the sum of its head's channels at the same token."""
    sums, width = np.zeros_like(terms), C // HEADS
    for c in range(C):
        first = c // width * width
        sums[:, :, c] = sum(terms[:, :, e] for e in range(first, first + width))
    return sums


def expected_output(operator: nn.Module, x: Tensor) -> np.ndarray:
    """Return the spikes that the definition gives to the last projection."""
    parts = {
        name: getattr(operator, name)(x).detach().numpy() for name in "qkv" if name in dir(operator)
    }
    if isinstance(operator, SDSA1):
        mask, *_ = fire_in_numpy(sums_over_tokens(parts["k"] * parts["v"]), leaky(2.0), 0.5)
        return parts["q"] * mask[..., None, None]
    if isinstance(operator, SDSA2):
        mask, *_ = fire_in_numpy(sums_over_tokens(parts["q"]), leaky(2.0), 0.5)
        return parts["v"] * mask[..., None, None]
    if isinstance(operator, QKCA):
        mask, *_ = fire_in_numpy(sums_over_tokens(parts["q"]), leaky(2.0), 0.5)
        return parts["k"] * mask[..., None, None]
    if isinstance(operator, QKTA):
        return parts["k"] * fire_in_numpy(sums_over_heads(parts["q"]), leaky(2.0), 0.5)[0]
    scores = 0.125 * product_of_heads(parts["q"], parts["k"], parts["v"])
    return fire_in_numpy(scores, leaky(2.0), 0.5)[0]


@pytest.mark.parametrize("kind", [SDSA1, SDSA2, SDSA3, SDSA4, QKTA, QKCA])
def test_operator_equals_its_definition(kind: type[nn.Module]) -> None:
    operator = enliven(kind(C, HEADS)).eval()
    x = random_spikes(T, B, C, H, W, seed=1)
    assert_lively({name: part(x) for name, part in operator.named_children() if name in "qkv"})
    expected = torch.from_numpy(expected_output(operator, x))
    assert 0 < expected.mean() < 1
    assert torch.equal(input_of(operator.proj, lambda: operator(x)), expected)
    assert_same(operator(x), operator.proj(expected))


def test_heads_do_not_see_each_other() -> None:
    q, k, v = (random_spikes(1, 1, HEADS, C // HEADS, 7, seed=i) for i in range(3))
    changed = k.clone()
    changed[:, :, 1] = 1 - changed[:, :, 1]
    before, after = matrix_product(q, k, v), matrix_product(q, changed, v)
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert not torch.equal(before[:, :, 1], after[:, :, 1])


@pytest.mark.parametrize(("d", "tokens"), [(2, 9), (9, 2), (4, 4), (1, 6), (6, 1)])
def test_both_product_orders_are_equal_and_the_cheaper_is_taken(d: int, tokens: int) -> None:
    q, k, v = (random_spikes(2, 3, 2, d, tokens, seed=i) for i in range(3))
    with FlopCounterMode(display=False) as counter:
        y = matrix_product(q, k, v)
    expected = torch.einsum("tbhdn,tbhdm,tbhem->tbhen", q, k, v)
    assert torch.equal(y, expected)
    assert torch.equal(v @ k.mT @ q, v @ (k.mT @ q))
    heads_in_all = 2 * 3 * 2
    cheaper = min(2 * tokens * d**2, 2 * tokens**2 * d)
    assert counter.get_total_flops() == 2 * heads_in_all * cheaper


@pytest.mark.parametrize("kind", [SDSA1, SDSA2, SDSA3, SDSA4, QKTA, QKCA])
def test_the_neuron_factory_reaches_every_neuron(kind: type[nn.Module]) -> None:
    operator = kind(C, HEADS, neuron=partial(LIF, tau=3.0))
    neurons = [m for m in operator.modules() if isinstance(m, LIF)]
    learned = [m for m in neurons if isinstance(m, LearnedThresholdLIF)]
    assert len(neurons) == (3 if kind in (SDSA2, QKTA, QKCA) else 4)
    assert len(learned) == (kind is SDSA4)
    assert all(m.tau == (2.0 if m in learned else 3.0) for m in neurons)
    assert operator.neuron.v_threshold == 0.5


def test_the_scale_and_the_last_neuron_are_arguments() -> None:
    x = random_spikes(T, B, C, H, W, seed=1)
    operator = enliven(SDSA3(C, HEADS, neuron=IF, scale=0.3)).eval()
    q, k, v = (getattr(operator, name)(x).detach().numpy() for name in "qkv")
    expected = fire_in_numpy(0.3 * product_of_heads(q, k, v), integrate, 0.5)[0]
    assert_same(input_of(operator.proj, lambda: operator(x)), torch.from_numpy(expected))
    other = SDSA4(C, HEADS, attn_neuron=partial(LearnedThresholdLIF, tau=5.0))
    assert (other.neuron.tau, other.neuron.v_threshold) == (5.0, 0.5)


@pytest.mark.parametrize("kind", [SDSA1, SDSA2, SDSA3, SDSA4, QKTA, QKCA])
@pytest.mark.parametrize("heads", [4, 0, -2, 12])
def test_heads_must_divide_the_width(kind: type[nn.Module], heads: int) -> None:
    with pytest.raises(InputError, match=f"heads={heads} does not divide dim=6"):
        kind(C, heads)
