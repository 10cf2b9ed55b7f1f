import pytest
import torch

from spikeformers.data import _vary_events
from spikeformers.data._vary_events import _CHANGES, _changed, vary_events


def full(side=32):
    return torch.ones(3, 2, side, side)


@pytest.mark.parametrize("name", _CHANGES)
@pytest.mark.parametrize("amount", [-1.0, -0.6, 0.7])
def test_all_frames_are_changed_alike_and_no_event_is_added(name, amount):
    torch.manual_seed(0)
    marks = torch.rand(1, 1, 32, 32).expand(3, 2, 32, 32)
    changed = _changed(marks, name, amount)
    assert changed.shape == marks.shape
    assert torch.equal(changed, changed[:1, :1].expand_as(changed))
    assert set(changed.unique().tolist()) <= {0.0, *marks.unique().tolist()}
    assert torch.equal(changed, marks) == (name == "nothing")


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("shift_x", 1.0, [0] * 5 + [1] * 123),
        ("shift_x", -1.0, [1] * 123 + [0] * 5),
        ("shift_x", 0.5, [0, 0] + [1] * 126),
    ],
)
def test_shifts_by_whole_pixels(name, amount, expected):
    changed = _changed(full(128), name, amount)
    assert changed[0, 0, 0].tolist() == expected
    turned = _changed(full(128), name.replace("x", "y"), amount)
    assert turned[0, 0, :, 0].tolist() == expected


def test_cutout_takes_a_square_of_the_area():
    torch.manual_seed(1)
    missing = 1 - _changed(full(), "cutout", -1.0)
    assert missing[0, 0].sum() == 11**2  # of 32 x 32: 11 %
    rows, columns = missing[0, 0].any(1), missing[0, 0].any(0)
    assert rows.sum() == columns.sum() == 11


def test_operations_are_drawn_with_equal_chance_and_within_the_magnitude(monkeypatch):
    seen = []
    monkeypatch.setattr(
        _vary_events, "_changed", lambda frames, *drawn: (seen.append(drawn), frames)[1]
    )
    torch.manual_seed(0)
    change = vary_events(operations=2, magnitude=15)
    for _ in range(600):
        change(full(2))
    assert len(seen) == 1200
    names = [name for name, _ in seen]
    assert all(150 < names.count(name) < 250 for name in _CHANGES)
    amounts = torch.tensor([amount for _, amount in seen])
    assert amounts.abs().max() <= 0.5 and amounts.max() > 0.49 and amounts.min() < -0.49


def test_randomness_is_torchs_alone():
    change = vary_events(operations=1, magnitude=30)
    frames = torch.rand(2, 2, 16, 16)
    torch.manual_seed(4)
    first = [change(frames) for _ in range(12)]
    torch.manual_seed(4)
    assert all(torch.equal(change(frames), result) for result in first)
    assert len({result.sum().item() for result in first}) > 4
