"""STMixer: token matrices, and surrogate modules that leave inference and other samples alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import BatchNorm, mixed_time_mean, time_mean
from spikeformers.models import Backbone
from spikeformers.models.stmixer import TokenMixer
from tests.golden import Case
from tests.helpers import assert_same, enliven, randn

TINY = "stmixer_tiny"
SOURCE = "STMixerV3"
SIZES = dict(
    img_size=32,
    downsample_times=2,
    embd_dims=32,
    depths=2,
    num_head=4,
    mlp_ratio=4,
    in_channels=3,
    num_classes=10,
)


def surrogate_scores(model: Backbone, x: Tensor) -> dict[str, Tensor]:
    """Run in training mode, but with the running statistics, which keep samples apart."""
    model.train()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()
    with torch.no_grad():
        return dict(model(x).aux)


def test_each_group_of_channels_has_its_token_matrix() -> None:
    mixer = TokenMixer(tokens=6, heads=2)
    x = randn(3, 2, 4, 2, 3, seed=1, dtype=torch.float32)
    y = mixer(x).flatten(3)
    for channel, head in enumerate([0, 0, 1, 1]):
        expected = x.flatten(3)[:, :, channel] @ mixer.heads[head].weight.T
        torch.testing.assert_close(y[:, :, channel], expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
def test_a_stage_has_two_encoders(depth: int) -> None:
    model = sf.create_model(TINY, depth=depth, surrogates=False)
    pairs, rest = divmod(depth, 2)
    assert [len([*stage.blocks.children()]) for stage in model.stages] == [
        0,
        *[2] * pairs,
        *[1] * rest,
    ]
    assert model.strides == [16] * len(model.stages)


@pytest.mark.parametrize(
    ("depth", "encoders"), [(2, [1]), (4, [2, 1]), (8, [3, 2, 1, 1]), (10, [3, 2, 1, 1, 1])]
)
def test_early_surrogate_modules_are_deeper(depth: int, encoders: list[int]) -> None:
    model = sf.create_model(TINY, depth=depth)
    assert [len(sml.encoders) for sml in model.head.surrogates] == encoders
    aux = model(torch.zeros(2, 3, 3, 48, 64)).aux
    assert {name: y.shape for name, y in aux.items()} == {
        f"sml{i}": (1, 3, 10) for i in range(1, len(encoders) + 1)
    }


def test_surrogate_modules_have_no_part_in_inference() -> None:
    model = enliven(sf.create_model(TINY)).eval()
    plain = sf.create_model(TINY, surrogates=False).double().eval()
    kept = {k: t for k, t in model.state_dict().items() if "surrogates" not in k}
    plain.load_state_dict(kept)
    x = randn(2, 2, 3, 48, 64, seed=1)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))


def test_surrogate_modules_of_a_sample_see_that_sample_alone() -> None:
    model, x = enliven(sf.create_model(TINY)), randn(3, 4, 3, 48, 64, seed=1)
    together = surrogate_scores(model, x)
    for i in range(4):
        for name, alone in surrogate_scores(model, x[:, i : i + 1]).items():
            assert_same(alone, together[name][:, i : i + 1])


@pytest.mark.parametrize("corrected", [False, True])
def test_official_surrogate_modules_mix_samples_unless_corrected(corrected: bool) -> None:
    case = Case("stmixer__sml_t2")
    model = sf.from_official(case.state(), case.source, corrected, **case.facts["kwargs"])
    x = case.input()
    together = surrogate_scores(model, x)["sml1"]
    alone = torch.cat([surrogate_scores(model, x[:, i : i + 1])["sml1"] for i in (0, 1)], 1)
    assert torch.allclose(alone, together, rtol=0, atol=1e-9) == corrected
    if not corrected:
        torch.testing.assert_close(together[0], case.array("aux1"), rtol=0, atol=1e-9)


def test_the_mixed_mean_is_the_mean_where_there_is_nothing_to_mix() -> None:
    x = randn(3, 4, 5)
    assert torch.equal(mixed_time_mean(x[:1]), time_mean(x[:1]))
    assert torch.equal(mixed_time_mean(x[:, :1]), time_mean(x[:, :1]))
    assert not torch.allclose(mixed_time_mean(x), time_mean(x))
    assert_same(mixed_time_mean(x).mean(1), time_mean(x).mean(1))


@pytest.mark.compile
def test_only_the_classifier_multiplies() -> None:
    model = sf.create_model(TINY).eval()
    report = sf.audit(sf.fold(model), torch.zeros(2, 1, 3, 48, 64))
    rest = {row.path: row.verdict for row in report.rows if row.verdict != "AC"}
    assert rest == {
        "stages.0.embed.direct": "encode",
        "stages.0.embed.spiking.conv1": "encode",
        "head.linear": "MAC",
    }


def test_other_image_sizes_are_refused() -> None:
    model = sf.create_model(TINY)
    assert model.image_size == (48, 64)
    with pytest.raises(InputError, match=r"x is 64x48, but .* fit 48x64 only.*image_size=\(64, 48"):
        model(torch.zeros(1, 1, 3, 64, 48))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(dim=20), "dim=20: expected a multiple of 8 and of heads=4"),
        (dict(heads=3), "dim=16: expected a multiple of 8 and of heads=3"),
        (dict(depth=0), "depth=0: expected at least 1"),
        (dict(depth=3), "depth=3: expected .* even with surrogates=True"),
        (dict(strides=(2, 2)), r"strides=\(2, 2\): expected five strides"),
        (dict(image_size=(48, 40)), r"image_size=\(48, 40\): .* multiples of 16"),
        (dict(image_size=(48,)), r"image_size=\(48,\): expected height and width"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.create_model(TINY, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(downsample_times=3), "downsample_times=3: expected 2 or 4"),
        (dict(mlp_ratio=2.5), "mlp_ratio=2.5: expected a whole number"),
    ],
)
def test_impossible_official_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.from_official({}, SOURCE, **{**SIZES, **wrong})
