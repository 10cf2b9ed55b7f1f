"""What the operations of an integer network do, slowly and literally: select, add, compare, shift.

Each function takes the operation and its operands `[B, ...]` and returns the result and the number
of additions it took. Nothing here multiplies but `encode`, which sees the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from spikeformers.transform.integer.network import Operation

Result = tuple[Tensor, int]


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], fill: int = 0
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield each place in a kernel over the last axes, and what all windows hold there."""
    widths = [side for pad in reversed(padding) for side in (pad, pad)]
    x = F.pad(x, widths, value=fill) if any(widths) else x
    sizes = x.shape[x.ndim - len(kernel) :]
    for place in itertools.product(*map(range, kernel)):
        held = x
        for axis, (start, size, side, step) in enumerate(
            zip(place, sizes, kernel, stride, strict=True), x.ndim - len(kernel)
        ):
            chosen = torch.arange(start, start + size - side + 1, step)
            held = held.index_select(axis, chosen)
        yield place, held


def _flat(place: Sequence[int], sides: Sequence[int]) -> int:
    """Return the number of a place, counted row by row."""
    number = 0
    for at, side in zip(place, sides, strict=True):
        number = number * side + at
    return number


def synapse(operation: Operation, x: Tensor) -> Result:
    """Let every spike add its column of weights to the outputs it reaches."""
    weight, settings = operation.tensors["weight"].long(), operation.settings
    groups = settings["groups"]
    # Rows of outputs, one per sample, position and group, as wide as a group.
    width, members = weight.shape[0] // groups, weight.shape[1]
    positions = math.prod(operation.shape[1:])
    sums = x.new_zeros(len(x) * positions * groups, width)
    additions = 0
    for place, held in windows(x, weight.shape[2:], settings["stride"], settings["padding"]):
        held = held.flatten(2) if held.ndim > 2 else held[..., None]
        b, channel, position = held.nonzero().unbind(1)
        # An integer is as many spikes.
        times = held[b, channel, position]
        b, channel, position = (i.repeat_interleave(times) for i in (b, channel, position))
        group, member = channel // members, channel % members
        columns = weight.reshape(*weight.shape[:2], -1)[..., _flat(place, weight.shape[2:])]
        columns = columns.unflatten(0, (groups, width))
        sums.index_add_(0, (b * positions + position) * groups + group, columns[group, :, member])
        additions += len(b) * width
    out = sums.view(len(x), positions, groups * width).mT.reshape(len(x), *operation.shape)
    return _as_current(operation, out), additions


def encode(operation: Operation, x: Tensor) -> Result:
    """Weigh the image in real numbers, and round once to a current."""
    weight, settings = operation.tensors["weight"].double(), operation.settings
    convolve = (F.linear, F.conv1d, F.conv2d)[weight.ndim - 2]
    options = {} if weight.ndim == 2 else settings
    shift = _along_channels(operation.tensors["shift"], x)
    bias = _along_channels(operation.tensors["bias"], x)
    return torch.ldexp(convolve(x, weight, **options), shift).round().long() + bias, 0


def _as_current(operation: Operation, sums: Tensor) -> Tensor:
    shift = _along_channels(operation.tensors["shift"], sums)
    return (sums << shift) + _along_channels(operation.tensors["bias"], sums)


def _along_channels(tensor: Tensor, x: Tensor) -> Tensor:
    return tensor.long().view(-1, *[1] * (x.ndim - 2))


def fire(operation: Operation, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spikes of a step and the membrane after it."""
    settings, threshold = operation.settings, operation.tensors["threshold"].long()
    leak = settings["leak"]
    if leak is None:
        h = v + x
    elif settings["leaks_input"]:
        h = v + ((x - v) >> leak)
    else:
        h = v - (v >> leak) + x
    fires = h >= threshold
    after = torch.zeros_like(h) if settings["reset"] == "zero" else h - threshold
    return fires.long(), torch.where(fires, after, h)


def add(_: Operation, a: Tensor, b: Tensor) -> Result:
    """Add two maps."""
    return a + b, a.numel()


def shift(operation: Operation, a: Tensor) -> Result:
    """Append binary zeros."""
    return a << operation.settings["bits"], 0


def complement(_: Operation, a: Tensor) -> Result:
    """Turn spikes into pauses, and pauses into spikes."""
    return (a == 0).long(), 0


def mask(_: Operation, a: Tensor, spikes: Tensor) -> Result:
    """Keep a value where there is a spike."""
    return torch.where(spikes != 0, a, 0), 0


def product(operation: Operation, a: Tensor, b: Tensor) -> Result:
    """Multiply matrices, one of spikes: each spike adds the integers of a column or row."""
    out = a.new_zeros(len(a), *operation.shape)
    additions = 0
    for k in range(a.shape[-1]):
        column, row = a[..., :, k, None], b[..., None, k, :]
        values, spikes = (column, row) if operation.settings["selector"] == 1 else (row, column)
        out = out + torch.where(spikes != 0, values, 0)
        additions += int(((values != 0) & (spikes != 0)).sum())
    return out, additions


def total(operation: Operation, a: Tensor) -> Result:
    """Sum spikes over axes."""
    axes = [axis + 1 for axis in operation.settings["axes"]]
    return a.sum(axes).reshape(len(a), *operation.shape), int(a.sum())


def sum_pool(operation: Operation, a: Tensor) -> Result:
    """Sum the values of every window."""
    places = [held for _, held in windows(a, **operation.settings)]
    sums = torch.stack(places).sum(0)
    return sums.reshape(len(a), *operation.shape), sum(held.numel() for held in places)


def max_pool(operation: Operation, a: Tensor) -> Result:
    """Take the largest value of every window."""
    lowest = int(torch.iinfo(torch.int32).min)
    places = [held for _, held in windows(a, **operation.settings, fill=lowest)]
    return torch.stack(places).amax(0), 0


def reshape(operation: Operation, a: Tensor) -> Result:
    """Keep the order, change the axes."""
    return a.reshape(len(a), *operation.shape), 0


def permute(operation: Operation, a: Tensor) -> Result:
    """Exchange axes."""
    return a.permute(0, *[axis + 1 for axis in operation.settings["axes"]]), 0


def cut(operation: Operation, a: Tensor) -> Result:
    """Take part of an axis."""
    s = operation.settings
    at = [slice(None)] * (s["axis"] + 1)
    return a[(*at, slice(s["start"], s["stop"], s["step"]))], 0


def expand(operation: Operation, a: Tensor) -> Result:
    """Repeat along axes of length 1."""
    return a.expand(len(a), *operation.shape), 0


def cat(operation: Operation, *parts: Tensor) -> Result:
    """Join along an axis."""
    return torch.cat(parts, operation.settings["axis"] + 1), 0


PERFORM: dict[str, Callable[..., Result]] = {
    "encode": encode,
    "synapse": synapse,
    "add": add,
    "shift": shift,
    "complement": complement,
    "mask": mask,
    "product": product,
    "sum": total,
    "sum_pool": sum_pool,
    "max_pool": max_pool,
    "reshape": reshape,
    "permute": permute,
    "slice": cut,
    "expand": expand,
    "cat": cat,
}
"""Kind of an operation -> what it does; neurons, which remember something, stand beside."""
