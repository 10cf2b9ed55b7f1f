"""The public surface, and what importing it needs."""

import subprocess
import sys
import types

import pytest

import spikeformers as sf
from spikeformers import layers, neurons, ops
from spikeformers.types import Alphabet

# Everything beyond torch, numpy and PyYAML.
OPTIONAL = ["PIL", "beartype", "cv2", "huggingface_hub", "jaxtyping", "matplotlib", "nir", "onnx"]
OPTIONAL += ["pandas", "safetensors", "scipy", "sklearn", "tensorboard", "timm", "torchvision"]
OPTIONAL += ["spikingjelly", "tqdm", "triton"]

# To Python, such a package is not installed: importing it fails, looking for it finds nothing.
BLOCK = "import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
USE = """
import torch
import spikeformers as sf
model = sf.create_model("meta_spikeformer_tiny").eval()
y = sf.fold(model)(torch.zeros(2, 1, 3, 32, 32))
y, state = sf.advance(model, torch.zeros(1, 1, 3, 32, 32))
print(model.readout(y).shape, len(state))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )


def constants_then_classes_then_functions(name: str) -> tuple[int, str]:
    """Sort as ruff sorts `__all__`."""
    constant = name.isupper()
    return (0 if constant else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("room", [sf, layers, neurons, ops], ids=lambda room: room.__name__)
def test_public_names_are_sorted_unique_and_there(room: types.ModuleType) -> None:
    names = room.__all__
    assert names == sorted(set(names), key=constants_then_classes_then_functions)
    assert all(hasattr(room, name) for name in names)


def test_the_package_shows_nothing_but_its_public_names_and_rooms() -> None:
    shown = {name for name in vars(sf) if not name.startswith("_")}
    rooms = {
        name
        for name in shown
        if isinstance(vars(sf)[name], types.ModuleType)
        and vars(sf)[name].__name__ == f"spikeformers.{name}"
    }
    assert shown - rooms == set(sf.__all__) - rooms


def test_a_star_import_works() -> None:
    namespace: dict[str, object] = {}
    exec("from spikeformers import *", namespace)
    assert set(sf.__all__) <= set(namespace)


@pytest.mark.parametrize(
    "blocked",
    [[name for name in OPTIONAL if name != "safetensors"], ["safetensors"]],
    ids=["all but safetensors", "safetensors"],
)
def test_works_without_optional_packages(blocked: list[str]) -> None:
    result = run(BLOCK.format(blocked=blocked) + USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "torch.Size([1, 10]) 31\n"


def test_the_blocker_blocks() -> None:
    result = run(BLOCK.format(blocked=["yaml"]) + "import yaml")
    assert "ModuleNotFoundError: import of yaml halted" in result.stderr


def test_importing_loads_no_optional_package_prints_nothing_and_leaves_torch_alone() -> None:
    result = run(
        "import sys, torch\n"
        "loaded = set(sys.modules)\n"
        "before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "import spikeformers\n"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "assert before[0].equal(after[0]) and before[1:] == after[1:]\n"
        "assert not torch.cuda.is_initialized()\n"
        f"optional = set({OPTIONAL!r}) - {{'jaxtyping', 'safetensors'}}\n"
        "print(sorted((set(sys.modules) - loaded) & optional))"
    )
    assert (result.stderr, result.stdout) == ("", "[]\n")


def test_shape_aliases_fall_back_to_tensors() -> None:
    result = run(
        BLOCK.format(blocked=["jaxtyping"])
        + "import torch\nfrom spikeformers.types import Current, Membrane, Spikes\n"
        "print(Current is Membrane is Spikes is torch.Tensor)"
    )
    assert result.stdout == "True\n", result.stderr


@pytest.mark.parametrize(
    ("alphabet", "text"),
    [
        (Alphabet(0, 1), "{0,1}"),
        (Alphabet(0, 4, 0.25), "0.25*{0..4}"),
        (Alphabet(-1, 1), "{-1..1}"),
        (Alphabet(0, 1, None), "w*{0,1}"),
    ],
)
def test_alphabets_are_written_as_sets(alphabet: Alphabet, text: str) -> None:
    assert str(alphabet) == text
