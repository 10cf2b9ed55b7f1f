"""NIR files: read by `nir` itself, by SpikingJelly and by a reader of our own, spike by spike."""

import json
import sys
from functools import partial
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from spikingjelly.activation_based.neuron import BaseNode
from spikingjelly.activation_based.nir_exchange import import_from_nir
from torch import Tensor, nn

from spikeformers.deploy.nir import export_nir
from spikeformers.errors import ExportError, InputError, MissingExtraError
from spikeformers.layers import (
    QKTA,
    SDSA1,
    SDSA3,
    Branch,
    Chain,
    ClassificationHead,
    ConvBN,
    LinearBN,
    Trunk,
    fold,
)
from spikeformers.models import Backbone, Stage, create_model
from spikeformers.models.stmixer import PatchSplitting
from spikeformers.neurons import IF, ILIF, LIF, PLIF, Neuron
from tests.deploy import nir_reader
from tests.helpers import assert_lively, enliven, spikes_of

pytestmark = pytest.mark.compile

DT = 1e-4


def network(neuron=LIF) -> Backbone:
    """A residual network without attention: all of it can be said in NIR."""
    body = Chain(expand=LinearBN(8, 16), neuron=neuron(), project=ConvBN(16, 8, 3))
    trunk = Trunk([dict(mixer=Branch(neuron(), body))])
    stem = Chain(conv=ConvBN(3, 8, 3, stride=2), neuron=neuron(), pool=ConvBN(8, 8, 3, stride=2))
    head = ClassificationHead(8, 10, neuron)
    return enliven(Backbone([Stage(stem, trunk, 8, 4)], head)).float().eval()


def images(timesteps: int = 4, side: int = 16) -> Tensor:
    return torch.randn(timesteps, 2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "neuron", [LIF, partial(LIF, tau=4.0), partial(LIF, decay_input=False), IF]
)
def test_spikingjelly_fires_the_same_spikes(neuron, tmp_path: Path) -> None:
    model, x = network(neuron), images()
    export_nir(model, x, tmp_path / "net.nir")
    ours = spikes_of(model := fold(model), lambda: model(x))
    assert_lively(ours)
    theirs = import_from_nir(tmp_path / "net.nir", dt=DT, step_mode="m")
    found: dict[str, Tensor] = {}
    for path, module in theirs.named_modules():
        if isinstance(getattr(module, "module", None), BaseNode):
            module.register_forward_hook(lambda _, __, y, path=path: found.update({path: y[0]}))
    scores, _ = theirs(x)
    assert {path.replace(".", "_") for path in ours} == found.keys()
    for path, spikes in ours.items():
        assert torch.equal(found[path.replace(".", "_")].reshape_as(spikes), spikes), path
    torch.testing.assert_close(scores, model(x), rtol=0, atol=1e-6)


NEURONS = [
    LIF(),
    LIF(tau=4.0, v_reset=-0.5),
    LIF(decay_input=False, strict=True),
    IF(v_threshold=0.75),
    IF(strict=True),
    PLIF(tau=2.0),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_an_euler_step_of_the_written_equation_is_a_step_of_ours(
    neuron: Neuron, tmp_path: Path
) -> None:
    # Quarters: sums stay exact, and many membranes meet the threshold exactly.
    x = torch.randint(-4, 16, (6, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 4
    export_nir(nn.Sequential(neuron).eval(), x, tmp_path / "neuron.nir")
    graph = nir.read(tmp_path / "neuron.nir")
    spikes = nir_reader.run(graph, {"input": x}, DT)["output"]
    assert torch.equal(spikes, neuron(x))
    assert 0 < spikes.mean() < 1


def test_the_file_holds_the_folded_weights_under_the_names_of_the_modules(tmp_path: Path) -> None:
    model = network()
    result = export_nir(model, images(), tmp_path / "net.nir", dt=0.5)
    graph, folded = nir.read(tmp_path / "net.nir"), dict(fold(model).named_modules())
    assert result.islands == (len(graph.nodes) - 2,)
    conv = graph.nodes["stages.0.embed.conv"]
    assert np.array_equal(conv.weight, folded["stages.0.embed.conv"].weight.detach())
    neuron = graph.nodes["stages.0.embed.neuron"]
    assert np.unique(neuron.tau) == 1.0 and np.unique(neuron.r) == 1.0
    assert np.unique(neuron.v_threshold) == np.nextafter(np.float32(1), np.float32(0))
    into = [a for a, b in graph.edges if b == "head"]
    assert sorted(into) == ["stages.0.blocks.0.mixer.fn.project", "stages.0.embed.pool"]


def test_a_grouped_convolution_is_written_with_its_zeros(tmp_path: Path) -> None:
    model = enliven(nn.Sequential(ConvBN(4, 8, 3, groups=2), LIF())).float().eval()
    x = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    export_nir(model, x, tmp_path / "net.nir")
    found = nir_reader.run(nir.read(tmp_path / "net.nir"), {"input": x}, DT)
    assert found["0"].shape == (3, 2, 8, 6, 6)
    torch.testing.assert_close(found["0"], model[0](x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("spikformer_tiny", r"stages\.0\.embed\.2\.pool\.module takes a maximum"),
        (nn.Sequential(SDSA3(3, 1)), r"^0 multiplies two signals"),
        (nn.Sequential(SDSA1(3, 1)), r"^0 multiplies two signals"),
        (nn.Sequential(QKTA(3, 1)), r"^0 sums over something else than a map"),
        (nn.Sequential(PatchSplitting(3, 8, (1, 1, 1, 2, 2), LIF)), r"^0 lays signals side by"),
        (nn.Sequential(ILIF()), r"^0 emits integers"),
        (nn.Sequential(LIF(v_reset=None)), r"^0 resets by subtraction"),
        (nn.Sequential(nn.Softmax(2)), r"^0 runs aten::softmax"),
    ],
)
def test_what_nir_cannot_express_is_refused_by_layer(
    model: nn.Module | str, message: str, tmp_path: Path
) -> None:
    model = create_model(model) if isinstance(model, str) else model
    with pytest.raises(ExportError, match=f"{message}.*, which NIR cannot express"):
        export_nir(model.eval(), torch.zeros(1, 1, 3, 16, 16), tmp_path / "net.nir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "side"), [("sdt_tiny", 16), ("spikformer_tiny", 16)])
def test_islands_and_what_lies_between_them_are_the_model(
    name: str, side: int, tmp_path: Path
) -> None:
    model, x = enliven(create_model(name)).float().eval(), images(3, side)
    result = export_nir(model, x, tmp_path / "net", partial=True)
    assert len(result.islands) > 1
    assert any("multiplies two signals" in reason for reason in result.between)
    (scores,) = nir_reader.run_islands(tmp_path / "net", x)
    torch.testing.assert_close(scores, model(x), rtol=0, atol=1e-5)


def test_islands_that_touch_could_not_be_joined(tmp_path: Path) -> None:
    model = create_model("spikformer_tiny").eval()
    export_nir(model, images(1, 16), tmp_path / "net", partial=True)
    index = json.loads((tmp_path / "net" / "index.json").read_text())
    island_of = {v: n for n, i in index["islands"].items() for v in i["outputs"].values()}
    reads = {name: set(island["inputs"].values()) for name, island in index["islands"].items()}
    for name, operation in index["between"].items():
        found: set[str] = set()
        _collect(operation["arguments"], found)
        reads[name] = found
    touching = [
        (island_of[v], name) for name in index["islands"] for v in reads[name] if v in island_of
    ]
    assert touching
    for first, second in touching:
        ahead, seen = [v for v in reads[second] if island_of.get(v) != first], set()
        while ahead:
            if (value := ahead.pop()) not in seen:
                seen.add(value)
                ahead.extend(reads.get(island_of.get(value, value), ()))
        assert any(island_of.get(value) == first for value in seen)


def _collect(argument: object, found: set[str]) -> None:
    if isinstance(argument, dict):
        found |= set(argument.get("sum_of", ()))
    elif isinstance(argument, list):
        for part in argument:
            _collect(part, found)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model, x = network(), images()
    contents = []
    for name in ("a.nir", "b.nir"):
        export_nir(model, x, tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_bad_input_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(), images()
    with pytest.raises(InputError, match=r"fold needs a model in eval mode"):
        export_nir(network().train(), x, tmp_path / "net.nir")
    with pytest.raises(InputError, match=r"dt=0: expected a positive number"):
        export_nir(model, x, tmp_path / "net.nir", dt=0)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ExportError, match=r"there exists already"):
        export_nir(model, x, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "nir", None)
    for module in ("_nir_graph", "_nir_islands"):
        monkeypatch.delitem(sys.modules, f"spikeformers.deploy.{module}", raising=False)
        monkeypatch.delattr(f"spikeformers.deploy.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=r"spikeformers\[export\]"):
        export_nir(model, x, tmp_path / "net.nir")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
