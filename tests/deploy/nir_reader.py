"""A reader of NIR files of our own, slow and obvious: Euler steps of the equations in `nir`."""

import json
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def run(graph: nir.NIRGraph, inputs: dict[str, Tensor], dt: float) -> dict[str, Tensor]:
    """Return what every node emits for inputs `[T, B, ...]`."""
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, name in graph.edges:
        sources[name].append(source)
    values = dict(inputs)
    for name in TopologicalSorter(sources).static_order():
        if name not in values:
            total = sum(values[source] for source in sources[name])
            values[name] = emit(graph.nodes[name], total, dt)
    return values


def emit(node: nir.NIRNode, x: Tensor, dt: float) -> Tensor:
    flat = x.flatten(0, 1)
    if isinstance(node, nir.Output):
        return x
    if isinstance(node, nir.Conv2d):
        weight, bias = torch.tensor(node.weight), torch.tensor(node.bias)
        stride, padding = (tuple(map(int, v)) for v in (node.stride, node.padding))
        y = F.conv2d(flat, weight, bias, stride, padding, tuple(map(int, node.dilation)))
    elif isinstance(node, nir.Affine | nir.Linear):
        bias = torch.tensor(node.bias) if isinstance(node, nir.Affine) else None
        y = F.linear(flat, torch.tensor(node.weight), bias)
    elif isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        kernel, stride, padding = (
            tuple(map(int, v)) for v in (node.kernel_size, node.stride, node.padding)
        )
        y = F.avg_pool2d(flat, kernel, stride, padding)
        y = y if isinstance(node, nir.AvgPool2d) else y * (kernel[0] * kernel[1])
    elif isinstance(node, nir.Flatten):
        y = flat.flatten(1)
    elif isinstance(node, nir.Scale):
        y = flat * torch.tensor(node.scale)
    else:
        return fire(node, x, dt)
    return y.unflatten(0, x.shape[:2])


def fire(node: nir.LIF | nir.IF, x: Tensor, dt: float) -> Tensor:
    """Start at the reset potential; one Euler step per time step."""
    threshold, v_reset = torch.tensor(node.v_threshold), torch.tensor(node.v_reset).to(x.dtype)
    v, spikes = v_reset.expand(x.shape[1:]), []
    for current in x:
        if isinstance(node, nir.LIF):
            leak = torch.tensor(node.v_leak) - v
            v = v + (dt / torch.tensor(node.tau)) * (leak + torch.tensor(node.r) * current)
        else:
            v = v + dt * torch.tensor(node.r) * current
        v = v.to(x.dtype)
        spikes.append((v > threshold).to(x.dtype))
        v = torch.where(v > threshold, v_reset, v)
    return torch.stack(spikes)


def run_islands(folder: Path, image: Tensor) -> list[Tensor]:
    """Run all islands and what lies between them, as `index.json` says."""
    index = json.loads((folder / "index.json").read_text())
    constants = np.load(folder / "constants.npz")
    (name,) = index["inputs"]
    values: dict[str, Any] = {name: image}
    for place in index["order"]:
        if island := index["islands"].get(place):
            inputs = {there: values[here] for there, here in island["inputs"].items()}
            found = run(nir.read(folder / island["file"]), inputs, index["dt"])
            values |= {here: found[there] for there, here in island["outputs"].items()}
        else:
            operation = index["between"][place]
            arguments = [given(a, values, constants, image) for a in operation["arguments"]]
            value = operate(operation, arguments, image)
            together = (operation["shape"] or [None])[0] == "T*B"
            values[place] = value.unflatten(0, image.shape[:2]) if together else value
    return [given(result, values, constants, image) for result in index["results"]]


def given(argument: Any, values: dict[str, Any], constants: Any, image: Tensor) -> Any:
    if isinstance(argument, list):
        return [given(a, values, constants, image) for a in argument]
    if not isinstance(argument, dict):
        return argument
    if "constant" in argument:
        return torch.tensor(constants[argument["constant"]])
    parts = [values[name] for name in argument["sum_of"]]
    if argument["shape"] is None:
        return parts[0]
    return sum(part.reshape(sizes(argument["shape"], image)) for part in parts)


def operate(operation: dict[str, Any], arguments: list[Any], image: Tensor) -> Any:
    name = operation["operator"]
    if name == "getitem":
        return arguments[0][arguments[1]]
    if name in ("aten::view", "aten::unsqueeze", "aten::squeeze", "aten::clone"):
        return arguments[0].reshape(sizes(operation["shape"], image))
    room, _, word = name.partition("::")
    return getattr(getattr(torch.ops, room), word)(*arguments)


def sizes(shape: list[int | str], image: Tensor) -> list[int]:
    steps, batch = image.shape[:2]
    words = {"T": steps, "B": batch, "T*B": steps * batch}
    return [words.get(size, size) for size in shape]
