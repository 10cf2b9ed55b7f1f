"""Test vectors hold bit for bit what the integer network does, and say so when they do not."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from spikeformers.cli import main
from spikeformers.deploy import check_vectors, export_vectors, read_vectors
from spikeformers.errors import ExportError, InputError
from spikeformers.layers import Branch, Chain, ConvBN, LinearBN, Trunk
from spikeformers.neurons import IF, LIF
from spikeformers.transform import IntegerNetwork, quantize
from tests.helpers import enliven, randn

pytestmark = pytest.mark.compile

X = randn(3, 2, 2, 5, 5, seed=1)


@cache
def network() -> IntegerNetwork:
    mixer = Branch(LIF(), LinearBN(4, 4))
    trunk = Trunk([dict(mixer=mixer, mlp=Branch(IF(), LinearBN(4, 4)))])
    model = Chain(ConvBN(2, 4, 3), LIF(), ConvBN(4, 4, 3), trunk, LIF(v_reset=None), LinearBN(4, 3))
    return quantize(enliven(model).eval(), X)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "net"
    export_vectors(network(), X, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "net"))


def test_the_folder_is_checked_and_complete(written: Path) -> None:
    vectors = check_vectors(written)
    names = {operation.name for operation in network().operations}
    assert vectors.values.keys() == names
    assert {path.stem for path in (written / "values").iterdir()} == names
    spikes = [op for op in network().operations if op.kind == "neuron"]
    assert vectors.membranes.keys() == {op.name for op in spikes}
    scores = vectors.values[network().operations[-1].name]
    assert (scores == network()(X)).all()


def test_numbers_are_as_narrow_as_the_format_says(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    kinds = {entry["name"]: entry["kind"] for entry in manifest["operations"]}
    for path in (written / "values").iterdir():
        expected = np.uint8 if kinds[path.stem] == "neuron" else np.int32
        assert np.load(path).dtype == expected
    weights = [np.load(path) for path in (written / "tensors").glob("*.weight.npy")]
    assert weights and {weight.dtype for weight in weights} == {np.dtype(np.int8)}
    assert (manifest["timesteps"], manifest["samples"]) == (3, 2)


def test_a_test_bench_in_numpy_computes_the_same_from_the_files_alone(written: Path) -> None:
    """Every linear layer of tokens and every neuron, from the manifest and the arrays."""

    def load(*names: str) -> np.ndarray:
        return np.load(written.joinpath(*names[:-1], f"{names[-1]}.npy")).astype(np.int64)

    checked = {"synapse": 0, "neuron": 0}
    for entry in json.loads((written / "manifest.json").read_text())["operations"]:
        name, settings = entry["name"], entry["settings"]
        if entry["kind"] == "synapse" and all(
            k == 1 for k in load("tensors", f"{name}.weight").shape[2:]
        ):
            weight, shift, bias = (load("tensors", f"{name}.{k}") for k in entry["tensors"][::-1])
            x = load("values", entry["inputs"][0])
            axes = (slice(None),) + (None,) * (len(entry["shape"]) - 1)
            total = np.einsum("oi,tbi...->tbo...", weight.reshape(weight.shape[:2]), x)
            assert np.array_equal((total << shift[axes]) + bias[axes], load("values", name))
            checked["synapse"] += 1
        if entry["kind"] == "neuron":
            threshold, v = load("tensors", f"{name}.threshold"), 0
            for t, x in enumerate(load("values", entry["inputs"][0])):
                leak = settings["leak"]
                if leak is None:
                    h = v + x
                elif settings["leaks_input"]:
                    h = v + ((x - v) >> leak)
                else:
                    h = v - (v >> leak) + x
                s = h >= threshold
                v = np.where(s, 0 if settings["reset"] == "zero" else h - threshold, h)
                assert np.array_equal(s, load("values", name)[t])
                assert np.array_equal(v, load("membranes", name)[t])
            checked["neuron"] += 1
    assert checked == {"synapse": 3, "neuron": 4}


@pytest.mark.parametrize("kind", ["values", "membranes"])
def test_one_wrong_bit_is_found_and_named(folder: Path, kind: str) -> None:
    path = sorted((folder / kind).iterdir())[1]
    numbers = np.load(path)
    numbers[2].reshape(-1)[5] ^= 1
    np.save(path, numbers)
    with pytest.raises(ExportError, match=rf"1 numbers differ .* {kind}/{path.name}, step 2"):
        check_vectors(folder)


def test_a_wrong_weight_is_found(folder: Path) -> None:
    path = sorted((folder / "tensors").glob("*.weight.npy"))[0]
    np.save(path, np.load(path) + np.int8(1))
    with pytest.raises(ExportError, match="numbers differ"):
        check_vectors(folder)


def damage(folder: Path, how: str) -> None:
    manifest = folder / "manifest.json"
    match how:
        case "no manifest":
            manifest.unlink()
        case "no JSON":
            manifest.write_text("{")
        case "another kind":
            manifest.write_text("{}")
        case "no weights":
            next((folder / "tensors").iterdir()).unlink()
        case "cut off":
            path = next((folder / "values").iterdir())
            path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("how", ["no manifest", "no JSON", "another kind", "no weights", "cut off"])
def test_a_damaged_folder_gets_one_sentence(folder: Path, how: str) -> None:
    damage(folder, how)
    with pytest.raises(ExportError, match="no test vectors"):
        read_vectors(folder)


def test_nothing_is_overwritten_and_nothing_half_is_left(written: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists already"):
        export_vectors(network(), X, written)
    with pytest.raises(InputError, match="x has shape"):
        export_vectors(network(), X[..., :4], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_turns_a_file_into_a_folder(tmp_path: Path, capsys) -> None:
    network().save(tmp_path / "net.safetensors")
    export = ["export", str(tmp_path / "net.safetensors"), "--format", "vectors"]
    capsys.readouterr()
    assert main([*export, "-o", str(tmp_path / "out"), "--timesteps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timesteps"] == 2
    assert len(check_vectors(tmp_path / "out").image) == 2
    for wrong in (["--timesteps", "0"], ["--image-size", "8"], ["--check"]):
        assert main([*export, "-o", str(tmp_path / "other"), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["export", "sdt_tiny", "--format", "vectors", "-o", str(tmp_path / "other")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "out"]
