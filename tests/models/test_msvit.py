"""MSViT: attention at two scales against its definition, and what one may exchange."""

from functools import partial

import pytest
import torch

import spikeformers as sf
from spikeformers.layers import SSA, ConvBN, LinearBN
from spikeformers.models.msvit import MSSA, ChannelwiseMSSA, RasterConvBN
from spikeformers.neurons import LIF
from tests.helpers import (
    assert_lively,
    assert_same,
    enliven,
    fire_in_numpy,
    leaky,
    randn,
    random_spikes,
    spikes_of,
)

TINY = "msvit_tiny"
T, B, C, H, W, HEADS = 4, 2, 6, 3, 5, 2


def test_the_wide_kernel_runs_over_tokens_in_raster_order() -> None:
    layer = enliven(RasterConvBN(2, 3)).eval()
    x = random_spikes(1, 1, 2, H, W, seed=1)
    row = torch.nn.functional.pad(x[0, 0].flatten(1), (1, 1))
    gain, offset = layer.norm.affine_map()
    for n in range(H * W):
        y = torch.einsum("oik,ik->o", layer.conv.weight, row[:, n : n + 3])
        assert_same(layer(x)[0, 0, :, n // W, n % W], gain * y + offset)
    assert_same(sf.fold(layer)(x), layer(x))


@pytest.mark.parametrize("kind", [MSSA, ChannelwiseMSSA])
def test_attention_equals_its_definition(kind: type[MSSA]) -> None:
    operator = enliven(kind(C, HEADS)).eval()
    x = random_spikes(T, B, C, H, W, seed=1)
    q, k, p = (getattr(operator, name)(x) for name in "qkp")
    assert_lively(dict(q=q, k=k, p=p))
    asked = torch.zeros(T, B, C, H, W, dtype=x.dtype)
    for c in range(C):
        first = c // (C // HEADS) * (C // HEADS)
        head = slice(first, first + C // HEADS)
        wide = p[:, :, head].sum(2) if kind is MSSA else p[:, :, c]
        asked[:, :, c] = q[:, :, head].sum(2) + wide
    mask = torch.from_numpy(fire_in_numpy(asked.detach().numpy(), leaky(2.0), 1.0)[0])
    assert 0 < mask.mean() < 1
    assert_same(operator(x), operator.proj(mask * k))


@pytest.mark.parametrize("p", [RasterConvBN, LinearBN, partial(ConvBN, kernel_size=3)])
def test_the_wide_branch_is_exchangeable_and_kept_in_checkpoints(p) -> None:
    model = enliven(sf.create_model(TINY, attention=partial(MSSA, p=p))).eval()
    x = randn(2, 2, 3, 32, 32, seed=1)
    assert_lively(spikes_of(model, lambda: model(x)))
    again = sf.create_model(TINY, **model.config.overrides).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(("given", "expected"), [(None, 1.0), (0.5, 0.5)])
def test_the_threshold_behind_attention(given: float | None, expected: float) -> None:
    model = sf.create_model(TINY, attn_threshold=given)
    sums = [m.neuron for m in model.modules() if isinstance(m, MSSA | SSA)]
    assert [neuron.v_threshold for neuron in sums] == [expected] * 3
    others = {m.v_threshold for m in model.modules() if isinstance(m, LIF) and m not in sums}
    assert others == {1.0}
