"""What `gather` saves is what the model did."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from spikeformers.analysis.firing import firing_rates, record_spikes
from spikeformers.errors import InputError
from spikeformers.inspect import gather
from spikeformers.neurons import Neuron

T, B, K = 3, 4, 5


class Threshold(Neuron):
    """Fires where the current reaches the threshold; no memory, so counts are known by hand."""

    def __init__(self, v_threshold):
        super().__init__()
        self.v_threshold = v_threshold

    def fire(self, x, v0=None):
        del v0
        return (x >= self.v_threshold).to(x), torch.zeros_like(x[0])


class Tiny(nn.Module):
    """Registered in another order than it runs, with one neuron that can never fire."""

    def __init__(self):
        super().__init__()
        self.late = Threshold(0.5)
        self.early = Threshold(0.5)
        self.silent = Threshold(9.0)
        self.frozen = nn.BatchNorm2d(1).eval()

    def forward(self, x):
        spikes = self.late(self.early(x)) + self.silent(x)
        return spikes.flatten(2)[..., :K] * 4

    def readout(self, y):
        return y.mean(0)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "x": torch.rand(T, B, 1, 10, 10),
        "images": torch.randint(0, 256, (B, 1, 10, 10), dtype=torch.uint8),
        "labels": torch.arange(B),
        "classes": list("abcde"),
    }


def load(folder):
    with np.load(folder / "inspect.npz", allow_pickle=False) as arrays:
        return json.loads((folder / "inspect.json").read_text()), dict(arrays)


def test_rates_are_means_per_step_in_module_order(batch):
    rates = firing_rates(Tiny(), batch["x"])
    expected = (batch["x"] >= 0.5).float().flatten(1).mean(1).tolist()
    assert list(rates) == ["late", "early", "silent"]
    assert rates["early"] == rates["late"] == pytest.approx(expected)
    assert rates["silent"] == [0.0] * T


def test_watching_leaves_no_trace(batch):
    model = Tiny().train()
    model.frozen.eval()
    firing_rates(model, batch["x"])
    assert model.training and model.early.training and not model.frozen.training
    with pytest.raises(ZeroDivisionError), record_spikes(model) as spikes:
        model(batch["x"])
        raise ZeroDivisionError
    assert list(spikes) == ["early", "late", "silent"]
    assert not any(module._forward_hooks for module in model.modules())


def test_recorded_spikes_need_no_gradient(batch):
    with record_spikes(Tiny()) as spikes:
        Tiny()(batch["x"])
        assert spikes == {}
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Threshold(0.0))
    with record_spikes(model) as spikes:
        model(batch["x"][0])
    assert not spikes["1"].requires_grad


def test_layers_and_rasters(batch, tmp_path):
    gather(Tiny(), folder=tmp_path / "new", **batch)
    facts, arrays = load(tmp_path / "new")
    fired = batch["x"].flatten(2) >= 0.5
    layer = facts["layers"][1]
    assert (facts["timesteps"], layer["name"], layer["neurons"]) == (T, "early", 100)
    assert layer["rate"] == pytest.approx(fired.float().mean().item())
    assert layer["never_fired"] == pytest.approx((~fired).all(0).all(0).float().mean().item())
    assert layer["always_fired"] == pytest.approx(fired.all(0).all(0).float().mean().item())
    assert facts["layers"][2]["never_fired"] == 1.0

    drawn = facts["rasters"][1]
    assert [raster["layer"] for raster in facts["rasters"]] == ["late", "early", "silent"]
    assert len(drawn["neurons"]) == 64
    assert (drawn["neurons"][0], drawn["neurons"][-1]) == (0, 99)
    assert arrays[drawn["array"]].dtype == bool
    assert np.array_equal(arrays[drawn["array"]], fired[:, 0, drawn["neurons"]].T.numpy())
    assert np.array_equal(arrays["images"], batch["images"].numpy())


def test_predictions_after_each_number_of_steps(batch, tmp_path):
    gather(Tiny(), folder=tmp_path, **batch)
    facts, _ = load(tmp_path)
    model = Tiny().eval()
    y = model(batch["x"])
    for b, sample in enumerate(facts["samples"]):
        assert sample["label"] == b
        for t, step in enumerate(sample["steps"], start=1):
            best = model.readout(y[:t])[b].softmax(0).topk(3)
            assert step["classes"] == best.indices.tolist()
            assert step["probabilities"] == pytest.approx(best.values.tolist())


def test_same_batch_same_bytes_and_no_drafts(batch, tmp_path):
    written = []
    for _ in range(2):
        gather(Tiny(), folder=tmp_path, **batch)
        written.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert written[0] == written[1]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["inspect.json", "inspect.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.rand(B, 1, 10, 10)}, "encode it first"),
        ({"images": torch.rand(B, 1, 10, 10)}, "uint8"),
        ({"labels": torch.arange(B - 1)}, "one label per sample"),
        ({"labels": torch.arange(B) + 2}, "class names"),
        ({"classes": list("abcd")}, "the model scores 5 classes"),
    ],
)
def test_what_does_not_fit_is_refused(batch, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        gather(Tiny(), folder=tmp_path, **(batch | change))
    assert not list(tmp_path.iterdir())
