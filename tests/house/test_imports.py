"""The doors between rooms: a room imports only what its row names. There is no exception list."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import spikeformers

ROOT = Path(spikeformers.__file__).parent

EVERYONE = {"types", "errors"}
DOORS: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "ops": set(),
    "data": set(),
    "neurons": {"ops"},
    "streaming": {"neurons"},
    "layers": {"neurons", "ops"},
    "models": {"layers", "neurons", "streaming"},
    "analysis": {"ops", "neurons", "layers"},
    "transform": {"analysis", "layers", "neurons", "ops"},
    "deploy": {"transform", "analysis", "streaming", "layers", "neurons", "ops"},
    "tasks": {"data", "layers"},
    "train": {"tasks", "models", "data", "transform", "analysis", "streaming", "layers"},
    "inspect": {"analysis", "transform", "streaming", "data"},
    "report": set(),
}
DOORS["cli"] = set(DOORS) | set(spikeformers.__all__)
DOORS["__main__"] = {"cli"}
DOORS["__init__"] = set(DOORS)

FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def modules_in(source: str, package: str) -> Iterator[str]:
    """Return what a file imports of ours, as dotted paths without `spikeformers.`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "spikeformers":
                    yield from attributes_of(tree, alias.asname or "spikeformers")
                elif alias.name.startswith("spikeformers."):
                    yield alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                above = parents[: len(parents) - node.level + 1]
                module = ".".join([*above, *([module] if module else [])])
            if module == "spikeformers":
                yield from (alias.name for alias in node.names)
            elif module.startswith("spikeformers."):
                yield module.partition(".")[2]


def attributes_of(tree: ast.AST, package: str) -> set[str]:
    """Return the names that a file takes from the bare package; the version is in no room."""
    taken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == package
    }
    return taken - {"__version__"}


def violations(room: str, source: str, package: str) -> list[str]:
    allowed = DOORS[room] | EVERYONE | {room}
    return [path for path in modules_in(source, package) if path.split(".")[0] not in allowed]


def package_of(path: Path) -> str:
    return ".".join(["spikeformers", *path.relative_to(ROOT).parts[:-1]])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_through_the_doors_of_its_room(path: Path) -> None:
    room = room_of(path)
    assert room in DOORS, f"{room} has no row in the table of doors"
    assert violations(room, path.read_text(), package_of(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import spikeformers.models",
        "import spikeformers as sf\nsf.create_model('a')",
        "from spikeformers import models",
        "from spikeformers import create_model",
        "from spikeformers.models._registry import create_model",
        "from .. import models",
        "from ..models import create_model",
        "def late():\n    from spikeformers.train import fit",
        "if TYPE_CHECKING:\n    from spikeformers.models import Backbone",
    ],
)
def test_a_wrong_door_is_noticed(source: str) -> None:
    assert len(violations("layers", source, "spikeformers.layers")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from spikeformers.ops import lif",
        "from spikeformers.errors import InputError",
        "from . import synapse",
        "from .synapse import fold",
        "import spikeformers\nspikeformers.__version__",
        "import spikeformers_of_somebody_else",
    ],
)
def test_an_open_door_is_not(source: str) -> None:
    assert violations("layers", source, "spikeformers.layers") == []


ARCHITECTURES = [p for p in FILES if room_of(p) == "models" and not p.name.startswith("_")]


@pytest.mark.parametrize("path", ARCHITECTURES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_architecture_imports_no_other_architecture(path: Path) -> None:
    of_models = [
        module.removeprefix("models.").removeprefix("official.")
        for module in modules_in(path.read_text(), package_of(path))
        if module.startswith("models.")
    ]
    assert of_models != []
    # The authors' names for an architecture stand in a file of its name, which knows it.
    own = {path.stem} if path.parent.name == "official" else set()
    assert all(name.startswith("_") or name in own for name in of_models)
