"""7B-Net: its sizes, and the averaging head against the flattening one."""

import pytest
import torch

import spikeformers as sf
from tests.helpers import assert_same, enliven, randn


@pytest.mark.parametrize(("name", "millions"), [("7b", 0.13), ("wide_7b", 1.19)])
def test_sizes_are_those_of_the_paper(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = sf.create_model(f"sew_net_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert model.strides[-1] == 128


def test_a_convolution_leads_where_the_width_changes_and_before_the_first_block() -> None:
    model = sf.create_model("sew_net_tiny", in_channels=8)
    leads = [bool(list(stage.embed.parameters())) for stage in model.stages]
    assert leads == [True, False, True]


def test_pools_keep_the_largest_integer_of_four() -> None:
    model = enliven(sf.create_model("sew_net_tiny")).eval()
    x = randn(2, 1, 3, 32, 32, seed=1)
    stage = model.stages[0]
    with torch.no_grad():
        inside = stage.blocks.block(stage.embed(x))
        fours = torch.stack([inside[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
        assert_same(stage(x), fours.amax(0))
    assert set(inside.unique().tolist()) == {0, 1, 2}
