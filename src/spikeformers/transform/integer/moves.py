"""Rules for what pools, and for what moves numbers without changing them; see `lower.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from spikeformers.analysis.capture import op_name
from spikeformers.transform.integer.program import Held, Program, Rule, table

__all__ = ["MOVES", "POOLS"]


def _mean(
    program: Program, node: Node, x: Node, axes: Sequence[int], _keepdim: bool = False
) -> Held:
    inner, shape = program.inner_axes(node, x, axes), program.inner_shape(x)
    if sorted(inner) != list(range(len(shape)))[-len(inner) :]:
        raise program.refusal(node, f"averages over axes {list(axes)}: expected the last ones")
    kernel = [shape[axis] for axis in sorted(inner)]
    return _average(program, node, x, kernel, kernel, [0] * len(kernel))


def _avg_pool(
    program: Program,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Held:
    if ceil_mode or divisor_override or (any(padding) and not count_include_pad):
        raise program.refusal(node, "divides by different numbers at the border")
    return _average(program, node, x, _pair(kernel), _pair(stride or kernel), _pair(padding))


def _adaptive_avg_pool(program: Program, node: Node, x: Node, size: Sequence[int]) -> Held:
    kernel = [a // b for a, b in zip(program.inner_shape(x)[-2:], size, strict=True)]
    return _average(program, node, x, kernel, kernel, [0, 0])


def _average(
    program: Program,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Held:
    held, terms = program.operand(node, x), math.prod(kernel)
    sums = replace(program.summed(node, held, terms), unit=held.unit / terms)
    settings = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding)}
    return program.emit("sum_pool", node, [held], sums, settings=settings)


def _max_pool(
    program: Program,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Held:
    if ceil_mode or any(side != 1 for side in dilation):
        raise program.refusal(node, "has dilation or ceil_mode: expected neither")
    settings = {
        "kernel": _pair(kernel),
        "stride": _pair(stride or kernel),
        "padding": _pair(padding),
    }
    held = program.operand(node, x)
    return program.emit("max_pool", node, [held], program.same(node, held), settings=settings)


def _pair(sides: Sequence[int]) -> list[int]:
    return list(sides) * (2 // len(sides))


def _alias(program: Program, _: Node, x: Node, *__: Any, **___: Any) -> Held:
    return program.of[x]


def _reshape(program: Program, node: Node, x: Node, *_: Any, **__: Any) -> Held:
    """Nothing happens to a step of a sample where only time and batch merge or part."""
    if program.inner_shape(node) == program.inner_shape(x):
        return program.of[x]
    held = program.operand(node, x)
    return program.emit("reshape", node, [held], program.same(node, held))


def _permute(program: Program, node: Node, x: Node, axes: Sequence[int]) -> Held:
    held, lead = program.operand(node, x), program.leading(x)
    order = [axis % len(axes) for axis in axes]
    if order[:lead] != list(range(lead)):
        raise program.refusal(node, "moves time or samples")
    inner = {"axes": [axis - lead for axis in order[lead:]]}
    return program.emit("permute", node, [held], program.same(node, held), settings=inner)


def _transpose(program: Program, node: Node, x: Node, a: int, b: int) -> Held:
    axes = list(range(x.meta["val"].ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return _permute(program, node, x, axes)


def _slice(
    program: Program,
    node: Node,
    x: Node,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Held:
    if program.inner_shape(node) == program.inner_shape(x):
        return program.of[x]
    held = program.operand(node, x)
    (inner,) = program.inner_axes(node, x, axis)
    start, stop, _ = slice(start, stop).indices(program.inner_shape(x)[inner])
    settings = {"axis": inner, "start": start, "stop": stop, "step": step}
    return program.emit("slice", node, [held], program.same(node, held), settings=settings)


def _expand(program: Program, node: Node, x: Node, *_: Any, **__: Any) -> Held:
    if program.inner_shape(node) == program.inner_shape(x):
        return program.of[x]
    held = program.operand(node, x)
    return program.emit("expand", node, [held], program.same(node, held))


def _cat(program: Program, node: Node, parts: Sequence[Node], axis: int = 0) -> Held:
    holds = program.aligned(node, parts)
    (inner,) = program.inner_axes(node, parts[0], axis)
    lows, highs = [held.low for held in holds], [held.high for held in holds]
    low = None if None in lows else min(bound for bound in lows if bound is not None)
    high = None if None in highs else max(bound for bound in highs if bound is not None)
    is_current = any(held.is_current for held in holds)
    joined = Held(node.name, holds[0].unit, low, high, is_current)
    return program.emit("cat", node, holds, joined, settings={"axis": inner})


def _getitem(program: Program, node: Node, container: Node, index: int) -> Held:
    """Take one output of several: the spikes of a neuron, a part of a split tensor."""
    if op_name(container) == "spikeformers::lif":
        return program.of[container]
    whole, axis = container.args[0], container.args[2] if len(container.args) > 2 else 0
    sizes = [part.shape[axis] for part in container.meta["val"]]
    start = sum(sizes[:index])
    return _slice(program, node, whole, axis, start, start + sizes[index])  # type: ignore[arg-type]


POOLS: dict[str, Rule] = {
    **table(_mean, "mean"),
    **table(_avg_pool, "avg_pool2d"),
    **table(_adaptive_avg_pool, "adaptive_avg_pool2d"),
    **table(_max_pool, "max_pool2d"),
}
MOVES: dict[str, Rule] = {
    **table(_alias, "clone alias detach lift_fresh_copy split split_with_sizes chunk"),
    **table(_reshape, "view _unsafe_view reshape flatten unflatten squeeze unsqueeze"),
    **table(_permute, "permute"),
    **table(_transpose, "transpose"),
    **table(_slice, "slice"),
    **table(_expand, "expand"),
    **table(_cat, "cat"),
    "getitem": _getitem,
}
