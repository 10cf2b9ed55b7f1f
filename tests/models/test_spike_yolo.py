"""SpikeYOLO: boxes of the published decoder, streaming maps, refused sizes, spike-driven."""

from typing import Any

import pytest
import torch

import spikeformers as sf
from spikeformers.errors import ConfigError
from spikeformers.layers import decode_boxes
from tests.golden import Case, cases
from tests.helpers import assert_same, enliven, randn

CASES = cases("spikeyolo")
SOURCE = "SpikeYOLO/ultralytics/nn/modules/yolo_spikformer.py"
STRIDES = (8, 16, 32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_maps_and_boxes_equal_the_published_ones(case: Case) -> None:
    model = sf.from_official(case.state(), case.source, **case.facts["kwargs"]).eval()
    with torch.no_grad():
        maps = model.readout(model(case.input()))
    for i, actual in enumerate(maps):
        assert_same(actual, case.array(f"map{i}"))
    boxes, probabilities = decode_boxes(maps, STRIDES)
    corners = boxes.unflatten(-1, (2, 2))
    middle, size = corners.mean(-2), corners[..., 1, :] - corners[..., 0, :]
    assert_same(torch.cat([middle, size, probabilities], -1).mT, case.array("boxes"))


def test_a_box_reaches_as_far_as_its_bins_say() -> None:
    left, top, right, bottom = 1, 0, 2, 3
    scores = torch.full((1, 4 * 4 + 1, 2, 3), -1e9)
    for side, distance in enumerate((left, top, right, bottom)):
        scores[:, 4 * side + distance] = 0.0
    scores[:, -1] = 0.0
    boxes, probabilities = decode_boxes([scores], [8], bins=4)
    assert boxes.shape == (1, 6, 4) and (probabilities == 0.5).all()
    row, column = 1.5, 2.5  # the last cell
    expected = torch.tensor([column - left, row - top, column + right, row + bottom]) * 8
    assert torch.equal(boxes[0, -1], expected)


def test_a_stream_in_chunks_equals_one_pass() -> None:
    model = enliven(sf.create_model("spike_yolo_tiny")).eval()
    x = randn(5, 2, 3, 64, 64, seed=1)
    with torch.no_grad():
        first, state = sf.advance(model, x[:2])
        second, _ = sf.advance(model, x[2:], state)
        whole = model(x)
    assert_same([torch.cat(chunks) for chunks in zip(first, second, strict=True)], whole)


def test_a_folded_detector_is_spike_driven() -> None:
    model = sf.fold(sf.create_model("spike_yolo_tiny").eval())
    assert "verdict: spike-driven" in str(sf.audit(model, torch.zeros(2, 1, 3, 64, 64)))


def test_the_authors_class_gets_the_constant_that_it_decodes_with() -> None:
    case = CASES[0]
    model = sf.from_official(case.state(), SOURCE, **case.facts["kwargs"])
    (key,) = case.facts["frozen_parameters"]
    assert key not in sf.to_official(model)
    constant = sf.to_official(model, dead="zeros")[key]
    assert torch.equal(constant, torch.from_numpy(case.state()[key]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dims=(8, 8, 8)), "expected one entry for each of 4 stages"),
        (dict(depths=(1, 1, 1, 1, 1)), "expected one entry for each of 4 stages"),
        (dict(dims=(4, 4, 8, 7)), "must be even"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.create_model("spike_yolo_tiny", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(width=0.3), "width=0.3: expected a multiple of 1/16"),
        (dict(width=0.0), "width=0.0: expected a multiple of 1/16"),
        (dict(width=0.25, max_channels=512), "max_channels=512"),
    ],
)
def test_scales_that_the_published_graph_does_not_fit_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.from_official({}, SOURCE, depth=0.33, **arguments)
