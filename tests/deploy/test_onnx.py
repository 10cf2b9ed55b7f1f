"""ONNX files: what onnxruntime makes of them is what the model makes, step by step."""

import json
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import spikeformers
from spikeformers.deploy import _onnx_graph, _onnx_operators
from spikeformers.deploy.onnx import export_onnx
from spikeformers.errors import ExportError, InputError, MissingExtraError
from spikeformers.layers import ConvBN, LinearBN
from spikeformers.models import create_model
from spikeformers.neurons import DSRLIF, IF, ILIF, LIF, PLIF, AcrossBatch, Neuron
from spikeformers.ops import lif
from spikeformers.ops.lif.reference import lif_forward
from spikeformers.transform import expand
from tests.helpers import assert_lively, enliven, neurons_of, randn, spikes_of

pytestmark = pytest.mark.compile


def image(batch: int = 1, timesteps: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return randn(1, batch, 3, height, width, seed=1).float().expand(timesteps, -1, -1, -1, -1)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path: Path, **inputs: Tensor) -> dict[str, Tensor]:
    file = session(path)
    names = [output.name for output in file.get_outputs()]
    found = file.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


# Tiny, and without the blocks that only repeat others.
SMALL = {
    "meta_spikeformer_tiny": dict(depths=(1, 0, 0, 1, 0)),
    "qkformer_tiny": dict(depths=(1, 0, 1)),
    "sdt_tiny": dict(depth=1),
    "sdt_v3_tiny": dict(depths=(1, 0, 0, 1, 0)),
    "spikformer_tiny": {},
    "stmixer_tiny": dict(depth=2),
}


@cache
def lively(name: str) -> nn.Module:
    return enliven(create_model(name, **SMALL[name])).float().eval()


@pytest.mark.parametrize("name", [*SMALL, "sdt_v3_tiny expanded"])
def test_one_shot_files_of_all_families_compute_the_model(name: str, tmp_path: Path) -> None:
    name, _, expanded = name.partition(" ")
    model = expand(lively(name), levels=4).eval() if expanded else lively(name)
    height, width = getattr(model, "image_size", None) or (32, 32)
    steps = 2 if name == "spikformer_tiny" else 1
    result = export_onnx(model, image(1, steps, height, width), tmp_path / "model.onnx")
    assert result.check["layers"] <= 1e-5 and result.check["end_to_end"] <= 1e-5
    assert result.check["neurons"] == len(neurons_of(model))
    assert result.inputs == {"image": [steps, "batch", 3, height, width]}
    assert result.outputs == {"scores": [steps, "batch", 10]}
    x = image(3, steps, height, width)
    scores = run(tmp_path / "model.onnx", image=x)["scores"]
    torch.testing.assert_close(scores, model(x), rtol=0, atol=1e-5)


def test_a_streaming_file_goes_on_where_it_was(tmp_path: Path) -> None:
    model, x = lively("spikformer_tiny"), image(2, 4)
    assert_lively(spikes_of(model, lambda: model(x)))
    path = tmp_path / "stream.onnx"
    result = export_onnx(model, x[:1, :1], path, stream=True)
    assert set(result.inputs) == {"image", *(f"before.{p}.membrane" for p in neurons_of(model))}
    notes = session(path).get_modelmeta().custom_metadata_map
    rest = json.loads(notes["rest"])
    state = {
        name: torch.full([2, *shape[1:]], rest[name.removeprefix("before.")])
        for name, shape in result.inputs.items()
        if name != "image"
    }
    scores = []
    for step in x.split(1):
        found = run(path, image=step, **state)
        scores.append(found.pop("scores"))
        state = {name.replace("after.", "before.", 1): value for name, value in found.items()}
    torch.testing.assert_close(torch.cat(scores), model(x), rtol=0, atol=1e-5)


class PerChannel(Neuron):
    """A decay and a threshold for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor([0.25, 0.5, 0.75]))
        self.threshold = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]))

    def fire(self, x: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return lif(x, v0, decay=self.decay, v_threshold=self.threshold)


@pytest.mark.parametrize(
    "neuron",
    [
        LIF(tau=3.0, v_reset=-0.5, strict=True),
        LIF(v_reset=None, decay_input=False),
        IF(),
        PLIF(),
        PerChannel(),
        ILIF(scale=0.25),
        ILIF(rounding="half_up", decay=0.0),
        DSRLIF(),
    ],
    ids=lambda neuron: str(neuron).partition(")")[0],
)
def test_every_neuron_is_written_as_its_reference(neuron: Neuron, tmp_path: Path) -> None:
    x = 2 * image(2, 3, 4, 4)
    result = export_onnx(nn.Sequential(neuron).eval(), x, tmp_path / "neuron.onnx")
    assert result.check == {"layers": 0.0, "end_to_end": 0.0, "neurons": 1}


@pytest.mark.parametrize(
    "neuron", [LIF(v_reset=-0.5), ILIF(), DSRLIF()], ids=lambda n: type(n).__name__
)
def test_every_neuron_goes_on_from_its_membrane(neuron: Neuron, tmp_path: Path) -> None:
    x, path = 2 * image(2, 3, 4, 4), tmp_path / "neuron.onnx"
    result = export_onnx(nn.Sequential(neuron).eval(), x, path, stream=True)
    assert result.check == {"layers": 0.0, "end_to_end": 0.0, "neurons": 1}
    notes = session(path).get_modelmeta().custom_metadata_map
    assert json.loads(notes["rest"]) == {"0.membrane": getattr(neuron, "v_reset", 0.0)}


class Calls(nn.Module):
    """A module that calls one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(randn(5, 4).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def elementwise(x: Tensor, _: Tensor) -> Tensor:
    y = (x.relu() + x.sigmoid().sqrt() - 2 * x.tanh()) / (1 + x.exp())
    y = y + x.clamp(-0.5, 0.5) + x.clamp(max=0.1) + (1 - x.clamp(min=0.2)) + x.round()
    y = y + ((x > 0) & (x <= 1)).float() + (x >= 0.5).float() + (x < 0).float()
    return y + x.floor() + torch.arange(4)


def rearranging(x: Tensor, _: Tensor) -> Tensor:
    wide = torch.cat([x, -x, x[:, :, :1].expand(-1, -1, 3, -1, -1)], 2)
    long = torch.cat([wide, wide.new_zeros(2, *wide.shape[1:]), torch.full_like(wide, 0.5)])
    turned = (long + wide[:1].expand(8, *wide.shape[1:])).permute(0, 1, 4, 2, 3).transpose(3, 4)
    first, second = turned[1:, :, ::2, 1:3].split([1, 1], 2)
    return first + sum(second.chunk(3, 4))[..., :1] + x.unbind(2)[0].sum()


def reducing(x: Tensor, weight: Tensor) -> Tensor:
    y = nn.functional.linear(x.mT @ x, weight).cumsum(0)
    y = y - y.amax((-2, -1), keepdim=True)
    return y.mean(dim=(-2, -1)) + y.sum(-1)[..., 0]


def pooling(x: Tensor, _: Tensor) -> Tensor:
    y = nn.functional.interpolate(x.flatten(0, 1), scale_factor=2, mode="nearest")
    y = nn.functional.avg_pool2d(y, 3, 2, 1)
    y = nn.functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False)
    return nn.functional.max_pool2d(y, 2).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("function", [elementwise, rearranging, reducing, pooling])
def test_operators_of_other_modules_are_written_too(function, tmp_path: Path) -> None:
    model = nn.Sequential(Calls(function)).eval()
    result = export_onnx(model, image(2, 3, 4, 4), tmp_path / "model.onnx")
    assert result.check["end_to_end"] <= 1e-6
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def small() -> nn.Module:
    model = nn.Sequential(ConvBN(3, 8, 3), LIF(), LinearBN(8, 4), LIF(tau=4.0))
    return enliven(model).float().eval()


def test_a_file_is_plain_complete_and_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a.onnx", "b.onnx"):
        export_onnx(small(), image(), tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert str(Path(spikeformers.__file__).parent).encode() not in contents[0]
    file = onnx.load_from_string(contents[0])
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    assert [op.version for op in file.opset_import] == [18]
    assert "0/conv2d" in {name for node in file.graph.node for name in node.output}


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = partial(_onnx_operators.same_in_onnx("Sub"))
    monkeypatch.setitem(_onnx_operators.OPERATORS, "aten::add", wrong)
    model = nn.Sequential(Calls(lambda x, _: x + x.relu()), LIF()).eval()
    with pytest.raises(ExportError, match=r"the current of 1 differs by .* at most 1e-05"):
        export_onnx(model, image(), tmp_path / "model.onnx")
    monkeypatch.undo()

    def eager(x: Tensor, v0: Tensor | None, decay: Tensor, v_threshold: Tensor, *rest: object):
        return lif_forward(x, v0, decay, 0.75 * v_threshold, *rest)

    monkeypatch.setitem(_onnx_graph.REFERENCES, "spikeformers::lif", eager)
    with pytest.raises(ExportError, match=r"^1 fires \d+ other spikes in onnxruntime"):
        export_onnx(small(), image(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    unchecked = export_onnx(small(), image(), tmp_path / "model.onnx", check=False)
    assert unchecked.check is None and str(unchecked).endswith("not checked")


def test_rounding_that_flips_a_spike_is_no_difference(tmp_path: Path) -> None:
    # Both sums are 1 up to rounding, which decides here whether the neuron fires.
    weights = randn(1, 4096, 1, 1).float()
    model = nn.Sequential(nn.Conv2d(4096, 1, 1, bias=False), LIF(tau=1.0)).eval()
    x = torch.ones(1, 1, 4096, 1, 1)
    with torch.no_grad():
        model[0].weight.copy_(weights / weights.sum())

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.neuron = model

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    result = export_onnx(Flat().eval(), x, tmp_path / "model.onnx")
    assert result.check["layers"] <= 1e-5


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(LIF()).train(), image(), "fold needs a model in eval mode"),
        (
            nn.Sequential(LIF()).eval(),
            image().double(),
            "example is torch.float64, expected float32",
        ),
        (nn.Sequential(AcrossBatch(LIF())).eval(), image(), "'0' integrates across the batch"),
        (Branches().eval(), image(), "Branches has no fixed graph that could be exported"),
        (
            nn.Sequential(nn.Softmax(2)).eval(),
            image(),
            "0 holds the operator aten::softmax, which this export cannot write",
        ),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused(
    model: nn.Module, x: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises((InputError, ExportError), match=message) as caught:
        export_onnx(model, x, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_graph_changes_says_so_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fixed graph"):
        export_onnx(create_model("stas_tiny").eval(), image(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ExportError, match=r"model\.onnx exists already"):
        export_onnx(small(), image(), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("package", "module"), [("onnx", "_onnx_graph"), ("onnxruntime", "_onnx_check")]
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"spikeformers.deploy.{module}", raising=False)
    monkeypatch.delattr(f"spikeformers.deploy.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*spikeformers\[export\]"):
        export_onnx(small(), image(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_relative_to_large_values_only() -> None:
    from spikeformers.deploy._onnx_check import _difference

    assert _difference(torch.tensor([0.5, 0.0]), np.array([0.25, 0.0])) == 0.25
    assert _difference(torch.tensor([100.0, 0.0]), np.array([100.0, 1.0])) == 0.01
    assert not _difference(torch.tensor([1.0]), np.array([np.nan])) <= 1e-5
