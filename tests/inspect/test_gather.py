"""What `gather` saves is what the model did."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from spikeformers.analysis.firing import firing_rates, potentials, record_spikes
from spikeformers.errors import InputError
from spikeformers.inspect import choose, gather
from spikeformers.layers import SDSA1, SDSA2, SDSA3, SDSA4
from spikeformers.neurons import LIF, Neuron

T, B, K = 3, 5, 5


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


class Seeing(Tiny):
    """With an attention block, a LIF neuron in it, and class 0 for every sample."""

    def __init__(self, attention):
        super().__init__()
        self.lift = nn.Conv2d(1, 4, 1)
        self.attn = attention(4, heads=2, neuron=LIF)

    def forward(self, x):
        potential = self.lift(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return super().forward(x) + 0 * self.attn(potential).mean()


def encode(images):
    """Brighter at every step."""
    return torch.stack([images / 255 + 0.1 * t for t in range(T)])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "images": torch.randint(0, 256, (B, 1, 10, 10), dtype=torch.uint8),
        "labels": torch.arange(B),
        "classes": list("abcde"),
        "encode": encode,
    }


@pytest.fixture
def small_chunks(monkeypatch):
    # The package has a function of that name, too.
    monkeypatch.setattr(sys.modules["spikeformers.inspect.gather"], "CHUNK", 2)


def load(folder):
    with np.load(folder / "inspect.npz", allow_pickle=False) as arrays:
        return json.loads((folder / "inspect.json").read_text()), dict(arrays)


def test_rates_are_means_per_step_in_module_order(batch):
    x = encode(batch["images"])
    rates = firing_rates(Tiny(), x)
    expected = (x >= 0.5).float().flatten(1).mean(1).tolist()
    assert list(rates) == ["late", "early", "silent"]
    assert rates["early"] == rates["late"] == pytest.approx(expected)
    assert rates["silent"] == [0.0] * T


def test_watching_leaves_no_trace(batch, tmp_path):
    model = Seeing(SDSA3).train()
    model.frozen.eval()
    firing_rates(model, encode(batch["images"]))
    gather(model, folder=tmp_path, **batch)
    assert model.training and model.early.training and not model.frozen.training
    with pytest.raises(ZeroDivisionError), record_spikes(model) as spikes:
        model(encode(batch["images"]))
        raise ZeroDivisionError
    assert list(spikes)[:2] == ["early", "late"]
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_recorded_spikes_need_no_gradient(batch):
    x = encode(batch["images"])
    with record_spikes(Tiny()) as spikes:
        Tiny()(x)
        assert spikes == {}
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Threshold(0.0))
    with record_spikes(model) as spikes:
        model(x[0])
    assert not spikes["1"].requires_grad


@pytest.mark.usefixtures("small_chunks")
def test_layers_and_rasters(batch, tmp_path):
    gather(Tiny(), folder=tmp_path / "new", **batch)
    facts, arrays = load(tmp_path / "new")
    fired = encode(batch["images"]).flatten(2) >= 0.5
    layer = facts["layers"][1]
    assert (facts["timesteps"], layer["name"], layer["neurons"]) == (T, "early", 100)
    assert layer["rate"] == pytest.approx(fired.float().mean().item())
    assert layer["rate_per_step"] == pytest.approx(fired.float().mean((1, 2)).tolist())
    assert layer["never_fired"] == pytest.approx((~fired).all(0).all(0).float().mean().item())
    assert layer["always_fired"] == pytest.approx(fired.all(1).all(0).float().mean().item())
    assert facts["layers"][2]["never_fired"] == 1.0

    drawn = facts["rasters"][1]
    assert [raster["layer"] for raster in facts["rasters"]] == ["late", "early", "silent"]
    assert len(drawn["neurons"]) == 64
    assert (drawn["neurons"][0], drawn["neurons"][-1]) == (0, 99)
    assert arrays[drawn["array"]].dtype == bool
    first = fired[:, facts["samples"][0]["index"], drawn["neurons"]]
    assert np.array_equal(arrays[drawn["array"]], first.T.numpy())


@pytest.mark.usefixtures("small_chunks")
def test_predictions_after_each_number_of_steps(batch, tmp_path):
    gather(Tiny(), folder=tmp_path, **batch)
    facts, arrays = load(tmp_path)
    model = Tiny().eval()
    y = model(encode(batch["images"]))
    hits = model.readout(y).argmax(-1) == batch["labels"]
    assert facts["looked_at"] == {"images": B, "right": int(hits.sum())}
    assert np.array_equal(arrays["images"], batch["images"].numpy())
    for b, sample in enumerate(facts["samples"]):
        assert sample["index"] == sample["label"] == b
        for t, step in enumerate(sample["steps"], start=1):
            best = model.readout(y[:t])[b].softmax(0).topk(3)
            assert step["classes"] == best.indices.tolist()
            assert step["probabilities"] == pytest.approx(best.values.tolist())


@pytest.mark.usefixtures("small_chunks")
def test_shows_a_few_of_many(batch, tmp_path):
    many = {"images": batch["images"].repeat(20, 1, 1, 1), "labels": batch["labels"].repeat(20)}
    gather(Seeing(SDSA3), folder=tmp_path, **(batch | many))
    facts, arrays = load(tmp_path)
    indices = [sample["index"] for sample in facts["samples"]]
    assert facts["looked_at"]["images"] == 100 and len(indices) == 24
    assert np.array_equal(arrays["images"], many["images"][indices].numpy())
    assert arrays["attention_0"].shape == (24, 10, 10)


@pytest.mark.parametrize("attention", [SDSA1, SDSA2, SDSA3, SDSA4])
def test_attention_is_the_rate_of_what_enters_the_projection(batch, tmp_path, attention):
    model = Seeing(attention)
    with torch.no_grad():
        for parameter in model.lift.parameters():
            parameter.fill_(1.0)
    gather(model, folder=tmp_path, **batch)
    facts, arrays = load(tmp_path)
    entered = []
    model.eval().attn.proj.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(encode(batch["images"]))
    assert facts["attention"] == [{"layer": "attn", "array": "attention_0"}]
    assert np.allclose(arrays["attention_0"], entered[0].mean((0, 2)).detach().numpy())


def test_traces_show_the_neurons_that_fire_now_and_then(batch, tmp_path):
    model = Seeing(SDSA3)
    with torch.no_grad():
        model.lift.weight.fill_(1.0)
    model.neuron = LIF()
    model.forward = lambda x: Tiny.forward(model, x) + 0 * model.neuron(1.5 * x).mean()
    gather(model, folder=tmp_path, **batch)
    facts, arrays = load(tmp_path)
    trace = facts["traces"][-1]
    x = 1.5 * encode(batch["images"])[:, :1]
    spikes, _ = model.neuron.fire(x)
    count = spikes.flatten(1).sum(0)[trace["neurons"]]
    assert trace["layer"] == "neuron" and len(count) == 6
    assert ((count > 0) & (count < T)).all()

    found = potentials(model.neuron, x)
    assert torch.equal(found.before >= 1.0, spikes.bool())
    before, after = (
        values.flatten(1)[:, trace["neurons"]].T for values in (found.before, found.after)
    )
    assert np.array_equal(arrays[trace["before"]], before.numpy())
    assert np.array_equal(arrays[trace["after"]], after.numpy())
    assert np.array_equal(arrays[trace["spikes"]], (before >= 1.0).numpy())
    assert np.array_equal(arrays[trace["threshold"]], np.ones(6))
    # Of a neuron with its own equation, only what it returns is known.
    assert facts["traces"][0]["before"] is None and facts["traces"][0]["threshold"] is None


def test_a_single_time_step_is_enough(batch, tmp_path):
    model = nn.Sequential(LIF(), nn.Flatten(2), nn.Linear(100, K))
    model.readout = lambda y: y.mean(0)
    gather(model, folder=tmp_path, **(batch | {"encode": lambda images: images[None] / 64}))
    facts, arrays = load(tmp_path)
    assert arrays[facts["traces"][0]["before"]].shape == (6, 1)


def test_same_batch_same_bytes_and_no_drafts(batch, tmp_path):
    torch.manual_seed(0)
    model, written = Seeing(SDSA3), []
    for _ in range(2):
        gather(model, folder=tmp_path, **batch)
        written.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert written[0] == written[1]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["inspect.json", "inspect.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encode": lambda images: images / 255}, "expected \\[T, B, C, H, W\\]"),
        ({"images": torch.rand(B, 1, 10, 10)}, "uint8"),
        ({"labels": torch.arange(B - 1)}, "one label per image"),
        ({"labels": torch.arange(B) + 2}, "class names"),
        ({"classes": list("abcdef")}, "the model scores 5 classes"),
    ],
)
def test_what_does_not_fit_is_refused(batch, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        gather(Tiny(), folder=tmp_path, **(batch | change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rights", "wrongs", "expected"),
    [(300, 60, (12, 12)), (97, 3, (21, 3)), (100, 0, (24, 0)), (5, 100, (5, 19)), (3, 4, (3, 4))],
)
def test_half_right_half_wrong_as_far_as_there_are(rights, wrongs, expected):
    labels = torch.zeros(rights + wrongs, dtype=torch.long)
    predictions = labels.clone()
    predictions[torch.linspace(0, len(labels) - 1, wrongs).long()] = 1
    chosen = choose(predictions, labels)
    hits = int((predictions[chosen] == 0).sum())
    assert (hits, len(chosen) - hits) == expected
    assert chosen == sorted(set(chosen)) == choose(predictions, labels)
    assert chosen[-1] - chosen[0] > 0.9 * (len(labels) - 2)
