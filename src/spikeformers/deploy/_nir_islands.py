"""NIR files of what `_nir_graph` has built: one for the whole, or one per island and an index.

An island is as large as it can be. Two that touch are one, unless another way leads out of the
first and into the second: then neither could run before the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import nir
import numpy as np
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from spikeformers.analysis.capture import op_name
from spikeformers.deploy._nir_graph import ARRANGING, VIEWS, Builder, InexpressibleError
from spikeformers.errors import ExportError

Edges = list[tuple[str, str]]


def write_whole(build: Builder, path: Path) -> None:
    """Write all nodes into one file, between `input` and `output`."""
    results = _results(build)
    ends = ["output"] if len(results) == 1 else [f"output.{i}" for i in range(len(results))]
    signals = {end: build.signal(node) for end, node in zip(ends, results, strict=True)}
    ((image, shape),) = build.inputs.items()
    nodes = {"input": nir.Input(np.array(shape)), **build.nodes}
    nodes |= {end: nir.Output(np.array(signal.shape)) for end, signal in signals.items()}
    edges = [*build.edges, *((a, end) for end, s in signals.items() for a in s.sources)]
    _write(path, nodes, [("input" if a == image else a, b) for a, b in edges])


def write_islands(build: Builder, folder: Path) -> list[int]:
    """Write a file per island and `index.json`; return the number of NIR nodes of each."""
    folder.mkdir()
    index = _Index(build)
    before = _predecessors(build)
    given = [name for name, sources in before.items() if name and not sources]
    groups = _groups(build, before)
    names = {group: f"island_{i}" for i, group in enumerate(dict.fromkeys(groups.values()))}
    island_of = {name: names[group] for name, group in groups.items()}
    islands = {}
    for island in names.values():
        inside = [name for name in build.nodes if island_of[name] == island]
        islands[island] = _write_island(build, inside, before, folder / f"{island}.nir")
    content = {
        "dt": build.dt,
        "inputs": {name: list(build.shapes[name]) for name in given},
        "order": [place for place in _order(before, island_of) if place not in given],
        "islands": islands,
        "between": {n.name: index.operation(n) for n in build.refused if n.name in before},
        "results": [index.operand(node) for node in _results(build)],
    }
    np.savez(folder / "constants.npz", **index.constants)  # type: ignore[arg-type]
    (folder / "index.json").write_text(json.dumps(content, indent=2) + "\n")
    return [len([name for name in build.nodes if island_of[name] == i]) for i in names.values()]


def _results(build: Builder) -> list[Node]:
    """Return the nodes that the model returns."""
    found: list[Node] = []
    map_arg(build.graph.nodes[-1].args, found.append)
    return found


def _sources(build: Builder, node: Node) -> tuple[str, ...]:
    """Return the NIR nodes whose sum a node of the captured graph is, or what is outside."""
    return build.signals[node].sources if node in build.signals else (node.name,)


def _predecessors(build: Builder) -> dict[str, list[str]]:
    """Return what each NIR node and each operation outside reads."""
    before: dict[str, list[str]] = {name: [] for name in [*build.inputs, *build.nodes]}
    for source, name in build.edges:
        before[name].append(source)
    for node in build.refused:
        operands = [n for n in node.all_input_nodes if n not in build.constants]
        before[node.name] = [name for n in operands for name in _sources(build, n)]
    results = [name for node in _results(build) for name in _sources(build, node)]
    needed, ahead = {""}, list(results)
    while ahead:
        if (name := ahead.pop()) not in needed:
            needed.add(name)
            ahead.extend(before[name])
    return {name: sources for name, sources in before.items() if name in needed} | {"": results}


def _groups(build: Builder, before: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the island of each NIR node, named after one of its nodes."""
    group = {name: name for name in build.nodes}
    grows = True
    while grows:
        grows = False
        for a, b in build.edges:
            if a not in group or group[a] == group[b] or _leads_around(group, before, a, b):
                continue
            joined, grows = group[b], True
            group = {name: group[a] if g == joined else g for name, g in group.items()}
    return group


def _leads_around(
    group: Mapping[str, str], before: Mapping[str, list[str]], a: str, b: str
) -> bool:
    """Whether a way leads from the island of `a` to that of `b` through something else."""
    readers: dict[str, set[str]] = {}
    for name, sources in before.items():
        for source in sources:
            readers.setdefault(group.get(source, source), set()).add(group.get(name, name))
    ahead = list(readers[group[a]] - {group[a], group[b]})
    seen: set[str] = set()
    while ahead:
        place = ahead.pop()
        if place == group[b]:
            return True
        if place not in seen:
            seen.add(place)
            ahead.extend(readers.get(place, ()))
    return False


def _order(before: Mapping[str, list[str]], island_of: Mapping[str, str]) -> list[str]:
    """Return islands and operations in an order in which they can run."""
    ahead: dict[str, list[str]] = {}
    for name, sources in before.items():
        place = island_of.get(name, name)
        ahead.setdefault(place, []).extend(
            island_of.get(source, source)
            for source in sources
            if island_of.get(source, source) != place
        )
    return [place for place in TopologicalSorter(ahead).static_order() if place]


def _write_island(
    build: Builder, inside: list[str], before: Mapping[str, list[str]], path: Path
) -> dict[str, Any]:
    """Write one island; return its file and what it is connected to."""
    edges = [(a, b) for a, b in build.edges if b in inside]
    read = dict.fromkeys(a for a, _ in edges if a not in inside)
    outside = [
        source for name, sources in before.items() if name not in inside for source in sources
    ]
    shown = [name for name in inside if name in outside]
    nodes = {f"input.{name}": nir.Input(np.array(build.shapes[name])) for name in read}
    nodes |= {name: build.nodes[name] for name in inside}
    nodes |= {f"output.{name}": nir.Output(np.array(build.shapes[name])) for name in shown}
    edges = [(f"input.{a}" if a in read else a, b) for a, b in edges]
    _write(path, nodes, [*edges, *((name, f"output.{name}") for name in shown)])
    return {
        "file": path.name,
        "inputs": {f"input.{name}": name for name in read},
        "outputs": {f"output.{name}": name for name in shown},
    }


def _write(path: Path, nodes: Mapping[str, nir.NIRNode], edges: Iterable[tuple[str, str]]) -> None:
    """Write a file and read it again, with all shapes checked."""
    nir.write(str(path), nir.NIRGraph(dict(nodes), list(edges), metadata={}))
    nir.read(str(path))


class _Index:
    """Says in JSON what lies between the islands.

    Attributes:
        constants: Tensors that the operations take, by name.
    """

    def __init__(self, build: Builder) -> None:
        self.build = build
        self.constants: dict[str, np.ndarray] = {}

    def operation(self, node: Node) -> dict[str, Any]:
        """Describe an operation: what it takes, what comes out, and why it is here."""
        # A view is known by the shape that comes out.
        arguments = node.args[:1] if op_name(node) in VIEWS else node.args
        facts = {
            "operator": op_name(node),
            "layer": self.build.graph.path(node),
            "arguments": map_arg(arguments, self.operand),
            "shape": self._shape(node),
        }
        if op_name(node) in ARRANGING:
            return facts
        return facts | {"reason": self.build.refused[node]}

    def operand(self, node: Node) -> dict[str, Any]:
        """Describe a tensor: a constant, or a sum of values from islands or operations."""
        if node in self.build.constants:
            self.constants[node.name] = self.build.constants[node].numpy()
            return {"constant": node.name}
        return {"sum_of": list(_sources(self.build, node)), "shape": self._shape(node)}

    def _shape(self, node: Node) -> list[int | str] | None:
        """Return the shape of a value, time and batch in words; several values have none."""
        if not isinstance(node.meta["val"], Tensor):
            return None
        try:
            shape = self.build.shape_of(node)
        except InexpressibleError as error:
            where = self.build.graph.path(node) or "the model"
            raise ExportError(f"{where} {error}, so there are no islands around it") from error
        together = node.meta["val"].ndim == 1 + len(shape)
        return [*(["T*B"] if together else ["T", "B"]), *shape]
