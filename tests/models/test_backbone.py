"""What a model says to inputs it cannot take."""

import math

import pytest
import torch
from torch import Tensor

import spikeformers as sf
from spikeformers.errors import InputError
from spikeformers.models import Backbone


@pytest.fixture(scope="module")
def model() -> Backbone:
    return sf.create_model("meta_spikeformer_tiny").eval()


def image_with(value: float) -> Tensor:
    x = torch.zeros(2, 1, 3, 32, 32)
    x[1, 0, 2, 3, 4] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"\[1, 3, 32, 32\].*encode\.direct\(x, timesteps=4\)"),
        (torch.zeros(3, 32, 32), r"\[3, 32, 32\]: expected \[T, B, C, H, W\]"),
        (torch.zeros(0, 1, 3, 32, 32), r"\[0, 1, 3, 32, 32\].*T >= 1"),
        (torch.zeros(2, 1, 3, 32, 32, 1), r"expected \[T, B, C, H, W\]"),
        (torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8: scale images to 0\.\.1"),
        (torch.zeros(2, 1, 2, 32, 32), r"2 channels .*expects 3: create it with in_channels=2"),
        (torch.zeros(2, 1, 3, 64, 8), r"64x8, smaller than the network's stride 16"),
        (image_with(math.nan), "NaN or infinite"),
        (image_with(math.inf), "NaN or infinite"),
        (image_with(math.nan)[1:].expand(3, -1, -1, -1, -1), "NaN or infinite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "x",
)
def test_misuse_is_explained(model: Backbone, x: Tensor, message: str) -> None:
    for call in (model, model.features):
        with pytest.raises(InputError, match=message):
            call(x)


def test_the_smallest_image_is_one_stride_wide(model: Backbone) -> None:
    assert model(torch.zeros(1, 1, 3, 16, 16)).shape == (1, 1, 10)


def test_a_static_image_may_be_expanded(model: Backbone) -> None:
    image = torch.randn(1, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expanded = image.expand(3, -1, -1, -1, -1)
    assert torch.equal(model(expanded), model(expanded.contiguous()))


def test_a_backbone_without_stages_is_refused() -> None:
    with pytest.raises(InputError, match="stages is empty: a backbone needs one at least"):
        sf.create_model("sew_resnet_18", dims=(), depths=())
