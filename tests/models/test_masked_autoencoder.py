"""Hidden parts of an image are as if they were not there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import BatchNorm
from spikeformers.models import create_model, masked_autoencoder
from spikeformers.models._pixels import View, positions
from spikeformers.models.masked_autoencoder import MaskedAutoencoder
from tests.helpers import (
    assert_lively,
    assert_same,
    enliven,
    gradients,
    randn,
    spikes_of,
    statistics,
)

SIDE, ROWS, COLUMNS, B = 16, 4, 6, 2
X = randn(2, B, 3, SIDE * ROWS, SIDE * COLUMNS, seed=1)
VISIBLE = torch.stack(
    [torch.arange(0, 24, 2), torch.tensor([0, 1, 2, 3, 7, 8, 9, 14, 15, 20, 22, 23])]
)

# The tokens of the first meet in attention only; those of the second meet in convolutions as well.
BACKBONES = {"sdt_v3_large_tiny": True, "meta_spikeformer_tiny": False}


def make(backbone: str, **options: Any) -> MaskedAutoencoder:
    sizes = dict(decoder_dim=8, decoder_depth=2, decoder_heads=2)
    torch.manual_seed(0)
    model = enliven(create_model("masked_autoencoder", backbone=backbone, **sizes, **options))
    assert isinstance(model, MaskedAutoencoder)
    return model


def mask(side: int) -> Tensor:
    """Return 1 where something is visible, `[B, 1, H, W]` with so many pixels per token."""
    tokens = torch.zeros(B, ROWS * COLUMNS, dtype=torch.float64).scatter(1, VISIBLE, 1)
    grid = tokens.view(B, 1, ROWS, COLUMNS)
    return grid.repeat_interleave(side, 2).repeat_interleave(side, 3)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_change_nothing(backbone: str, training: bool) -> None:
    model = make(backbone).train(training)
    assert model.gathers == BACKBONES[backbone]
    changed = torch.where(mask(SIDE) > 0, X, 100 * X.flip(1))
    y = model(X, VISIBLE)
    assert y.shape == (2, B, ROWS * COLUMNS, 3 * SIDE**2)
    again = make(backbone).train(training)
    assert torch.equal(again(changed, VISIBLE), y)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    seen = torch.where(mask(SIDE) > 0, -X, X)
    assert (make(backbone).train(training)(seen, VISIBLE) - y).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_neurons_are_silent_and_the_others_are_not(backbone: str) -> None:
    model = make(backbone)
    spikes = spikes_of(model, lambda: model(X, VISIBLE))
    assert_lively(spikes)
    maps = {k: s for k, s in spikes.items() if s.shape[3] % ROWS == 0 and s.shape[3] > 1}
    assert len(maps) >= 6
    for path, s in maps.items():
        assert (s * (1 - mask(s.shape[3] // ROWS))).abs().max() == 0, path


def test_batch_statistics_are_those_of_visible_places() -> None:
    model = make("sdt_v3_large_tiny")
    stem = model.stages[0].embed.conv
    before = statistics(stem.norm)
    model(X, VISIBLE)
    places = mask(SIDE // 2)[:, 0] > 0
    seen = torch.cat([stem.conv(x * mask(SIDE)).transpose(0, 1)[:, places] for x in X], 1)
    assert_same(stem.norm.running_mean, 0.9 * before["running_mean"] + 0.1 * seen.mean(1))
    assert_same(stem.norm.running_var, 0.9 * before["running_var"] + 0.1 * seen.var(1))


@pytest.mark.parametrize("training", [True, False])
def test_leaving_tokens_out_equals_hiding_them(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = make("sdt_v3_large_tiny").train(training)
    monkeypatch.setattr(masked_autoencoder, "membranes_of_tokens", lambda *_: None)
    hiding = make("sdt_v3_large_tiny").train(training)
    assert gathering.gathers and not hiding.gathers
    assert_same(hiding(X, VISIBLE), gathering(X, VISIBLE))
    assert_same(dict(hiding.state_dict()), dict(gathering.state_dict()))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_nothing_hidden_the_encoder_is_the_backbone(backbone: str) -> None:
    model = make(backbone).eval()
    plain = create_model(backbone, num_classes=None).double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "stages" in k})
    expected = plain.features(X)
    for call in (model, lambda x: model(x, VISIBLE)):
        # What another call has hidden is forgotten.
        call(X)
        for own, other in zip(model.features(X), expected, strict=True):
            assert torch.equal(own, other)
    every = View(torch.arange(ROWS * COLUMNS).expand(B, -1), (ROWS, COLUMNS))
    tokens = every.take(expected[-1].flatten(0, 1)).unflatten(0, (2, B))
    assert_same(model(X), model.head(tokens, every))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_reach_every_parameter(backbone: str) -> None:
    model = make(backbone)
    y = model(X, VISIBLE)
    (y * randn(*y.shape, seed=3)).sum().backward()
    dead = {name for name, grad in gradients(model).items() if grad.abs().max() < 1e-12}
    # What stands in front of a norm has no effect of its own.
    assert {name for name in dead if not name.endswith((".bias", "inner_norm.weight"))} == set()


def test_hidden_tokens_are_told_apart_by_their_places() -> None:
    places = positions((4, 5), torch.zeros(8, dtype=torch.float64))
    assert places.shape == (20, 8)
    # The product of two places depends on how far they are apart, and on nothing else.
    products = (places @ places.mT).view(4, 5, 4, 5)
    assert_same(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1])
    assert len(places.unique(dim=0)) == 20
    assert_same(places[0], torch.tensor([0, 0, 1, 1] * 2, dtype=torch.float64))


def test_views_put_back_what_they_took() -> None:
    view = View(VISIBLE, (ROWS, COLUMNS))
    maps = randn(2 * B, 5, 4 * ROWS, 4 * COLUMNS)
    assert view.take(maps).shape == (2 * B, 5, 16, 12)
    assert torch.equal(view.put(view.take(maps)), maps * mask(4).repeat(2, 1, 1, 1))


def test_all_norms_of_maps_are_watched() -> None:
    for backbone, gathers in BACKBONES.items():
        model = make(backbone)
        inside = set(model.stages[-1].blocks.modules()) if gathers else set()
        norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
        assert all(bool(m._forward_hooks) == (m not in inside) for m in norms)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"x is 64x40: its tokens are 16x16 pixels"):
        make("sdt_v3_large_tiny")(X[..., :40])
    with pytest.raises(ConfigError, match=r"decoder_dim=8: .* decoder_heads=3"):
        create_model(
            "masked_autoencoder",
            backbone="sdt_v3_large_tiny",
            decoder_dim=8,
            decoder_heads=3,
        )
    with pytest.raises(ConfigError, match=r"backbone=stas_spikformer_cifar_4_384 is more than"):
        create_model("masked_autoencoder", backbone="stas_spikformer_cifar_4_384")
