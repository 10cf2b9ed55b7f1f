"""From the captured graph of a folded model to the program of an integer network.

Each rule takes the program, a node and the node's arguments, appends what the node does, and
returns its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from spikeformers.analysis import Graph
from spikeformers.analysis.alphabet import constant_factor
from spikeformers.analysis.capture import op_name
from spikeformers.transform.integer.moves import MOVES, POOLS
from spikeformers.transform.integer.network import Operation
from spikeformers.transform.integer.program import Held, Program, Rule, table
from spikeformers.transform.integer.rounding import FRACTION_BITS, round_weight

__all__ = ["lower"]


def lower(graph: Graph, example: Tensor) -> tuple[Operation, ...]:
    """Return the program of one time step; its last operation gives the scores.

    Args:
        graph: A folded model, captured with `program.TIMESTEPS` steps of `program.SAMPLES` samples.
        example: The input it was captured with.

    Raises:
        InputError: If an operation has no integer form; it is named.
    """
    program = Program(graph, example)
    for node in graph.nodes:
        if node.op == "call_function" and not program.facts.is_constant(node):
            rule = RULES.get(op_name(node))
            if rule is None:
                raise program.refusal(node, "has no integer form")
            program.of[node] = rule(program, node, *node.args, **node.kwargs)
    return program.ending_with(graph.nodes[-1])


# Synapses.


def _conv(
    program: Program,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Held:
    if any(side != 1 for side in dilation) or isinstance(padding, str):
        raise program.refusal(node, f"has dilation={dilation}, padding={padding}: expected neither")
    axes = program.constant(weight).ndim - 2
    settings = {
        "stride": list(stride) * (axes // len(stride)),
        "padding": list(padding) * (axes // len(padding)),
        "groups": groups,
    }
    return _synapse(program, node, program.of[x], weight, bias, settings)


def _linear(program: Program, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Held:
    """Map the last axis: it goes to the front, where channels stand, and back."""
    held, shape = program.of[x], program.inner_shape(x)
    others = len(shape) - 1
    settings: dict[str, Any] = {"stride": [1] * others, "padding": [0] * others, "groups": 1}
    if not others:
        return _synapse(program, node, held, weight, bias, settings)
    held = program.operand(node, x)
    front = replace(held, name=f"{node.name}.front")
    there = {"axes": [others, *range(others)]}
    first = (shape[-1], *shape[:-1])
    program.emit("permute", node, [held], front, shape=first, settings=there)
    mapped = (program.inner_shape(node)[-1], *shape[:-1])
    y = _synapse(
        program, node, front, weight, bias, settings, name=f"{node.name}.mapped", shape=mapped
    )
    back = {"axes": [*range(1, others + 1), 0]}
    return program.emit("permute", node, [y], program.same(node, y), settings=back)


def _synapse(
    program: Program,
    node: Node,
    held: Held,
    weight: Node,
    bias: Node | None,
    settings: dict[str, Any],
    *,
    name: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> Held:
    """Turn spikes into a current, or encode the image."""
    if held.is_current or (held.low or 0) < 0:
        raise program.refusal(node, "sees a current or negative numbers: expected spikes")
    real = program.constant(weight).double() * float(held.unit)
    steps, exponent = round_weight(real)
    offsets = torch.zeros(len(real)) if bias is None else program.constant(bias)
    offsets = torch.ldexp(offsets.double(), torch.tensor(FRACTION_BITS)).round()
    if offsets.abs().max() > torch.iinfo(torch.int32).max:
        raise program.refusal(node, f"has an offset beyond {2 ** (31 - FRACTION_BITS)}")
    kernel = [1] * (len(settings["stride"]) - (real.ndim - 2))
    tensors = {
        "weight": steps.to(torch.int8).reshape(*steps.shape, *kernel),
        "shift": FRACTION_BITS - exponent,
        "bias": offsets.int(),
    }
    low, high = _reach(tensors, held.high)
    unit = Fraction(1, 2**FRACTION_BITS)
    current = Held(name or node.name, unit, low, high, is_current=True)
    kind = "encode" if held.name == "image" else "synapse"
    facts: dict[str, Any] = {"settings": settings, "tensors": tensors}
    return program.emit(
        kind, node, [held], current, shape=shape or program.inner_shape(node), **facts
    )


def _reach(tensors: dict[str, Tensor], most: int | None) -> tuple[int | None, int | None]:
    """Return the currents that no spikes can go beyond."""
    if most is None:
        return None, None
    weight = tensors["weight"].long().flatten(1)
    sums = (weight.clamp(max=0).sum(1).tolist(), weight.clamp(min=0).sum(1).tolist())
    # Python's integers: a channel that is always silent may have a norm of enormous gain.
    per_channel = list(zip(tensors["shift"].tolist(), tensors["bias"].tolist(), strict=True))
    low, high = (
        [(most * n << shift) + bias for n, (shift, bias) in zip(side, per_channel, strict=True)]
        for side in sums
    )
    return min(low), max(high)


# Neurons.


def _lif(program: Program, node: Node, *args: Any, **options: Any) -> Held:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, args, strict=False)), **options}
    current = program.operand(node, given["x"])
    if program.leading(given["x"]) != 2:
        raise program.refusal(node, "integrates across the samples of a batch")
    if given["v0"] is not None or given["v_reset"] not in (0.0, None):
        raise program.refusal(node, f"resets to {given['v_reset']}: expected 0 or by subtraction")
    if any(user.args[1] != 0 for user in node.users):
        raise program.refusal(node, "hands its membrane to others: expected spikes alone")
    if not current.is_current:
        # Halves of small integers would be lost in a leak.
        bits = min(FRACTION_BITS, 31 - (current.high or 0).bit_length())
        current = program.shifted(node, current, bits, program.inner_shape(given["x"]))
    spikes = Held(node.name, Fraction(1), 0, 1)
    return program.emit(
        "neuron",
        node,
        [current],
        spikes,
        shape=program.inner_shape(given["x"]),
        settings={
            "leak": _leak(program, node, given),
            "leaks_input": given["decay_input"],
            "reset": "subtract" if given["v_reset"] is None else "zero",
        },
        tensors={"threshold": _thresholds(program, node, given, current.unit)},
    )


def _leak(program: Program, node: Node, given: dict[str, Any]) -> int | None:
    """Return by how many bits the membrane shifts to the right; `None` if it keeps everything."""
    decays = program.constant(given["decay"]).double().unique()
    lost = 1 - float(decays[0])
    if len(decays) == 1 and not given["decay_input"] and lost == 0:
        return None
    mantissa, exponent = math.frexp(lost)
    if len(decays) > 1 or mantissa != 0.5:
        tau = "several" if len(decays) > 1 else f"{1 / lost if lost else math.inf:g}"
        raise program.refusal(
            node, f"has tau={tau}: a shift leaks with a power of two; fine-tune with tau=2"
        )
    return 1 - exponent


def _thresholds(program: Program, node: Node, given: dict[str, Any], unit: Fraction) -> Tensor:
    """Return the integers from which on the neuron fires: one, or one per channel."""
    thresholds = program.constant(given["v_threshold"])
    exact = [Fraction(value) / unit for value in thresholds.double().reshape(-1).tolist()]
    if given["strict"]:
        whole = [math.floor(value) + 1 for value in exact]
    else:
        whole = [math.ceil(value) for value in exact]
    if not 0 < max(whole) <= torch.iinfo(torch.int32).max:
        raise program.refusal(node, f"has the integer threshold {max(whole)}: expected 32 bits")
    axes = len(program.inner_shape(given["x"])) - 1 if thresholds.ndim else 0
    return torch.tensor(whole, dtype=torch.int32).view(-1, *[1] * axes)


# Sums and products.


def _add(program: Program, node: Node, a: Node, b: Node, alpha: float = 1) -> Held:
    if alpha != 1:
        raise program.refusal(node, f"has alpha={alpha}: expected 1")
    a_held, b_held = program.aligned(node, [a, b])
    low, high = (
        None if x is None or y is None else x + y
        for x, y in ((a_held.low, b_held.low), (a_held.high, b_held.high))
    )
    is_current = a_held.is_current or b_held.is_current
    total = Held(node.name, a_held.unit, low, high, is_current)
    return program.emit("add", node, [a_held, b_held], total)


def _rsub(program: Program, node: Node, x: Node, other: float, alpha: float = 1) -> Held:
    held = program.operand(node, x)
    if not held.is_binary or held.unit != 1 or (other, alpha) != (1, 1):
        raise program.refusal(node, "subtracts: expected 1 - spikes")
    return program.emit("complement", node, [held], program.same(node, held))


def _mul(program: Program, node: Node, a: Any, b: Any) -> Held:
    factor = constant_factor(node, program.facts)
    if factor is not None:
        held = program.operand(node, a if a in program.of else b)
        if factor <= 0:
            raise program.refusal(node, f"has the factor {factor:g}: expected a positive one")
        return replace(held, unit=held.unit * Fraction(factor))
    values, spikes = program.operand(node, a), program.operand(node, b)
    if not spikes.is_binary:
        values, spikes = spikes, values
    if not spikes.is_binary:
        raise program.refusal(node, "multiplies integers: expected spikes on one side")
    low = None if values.low is None else min(values.low, 0)
    kept = program.same(node, values, unit=values.unit * spikes.unit, low=low)
    return program.emit("mask", node, [values, spikes], kept)


def _matmul(program: Program, node: Node, a: Node, b: Node) -> Held:
    left, right = program.operand(node, a), program.operand(node, b)
    if not left.is_binary and not right.is_binary:
        raise program.refusal(node, "multiplies integers: expected spikes on one side")
    values = left if right.is_binary else right
    terms = a.meta["val"].shape[-1]
    low, high = (None if bound is None else terms * bound for bound in (values.low, values.high))
    sums = Held(node.name, left.unit * right.unit, low, high, values.is_current)
    selector = {"selector": 1 if right.is_binary else 0}
    return program.emit("product", node, [left, right], sums, settings=selector)


def _sum(
    program: Program, node: Node, x: Node, axes: Sequence[int], _keepdim: bool = False
) -> Held:
    held = program.operand(node, x)
    if held.is_current:
        raise program.refusal(node, "sums currents: expected spikes")
    inner = program.inner_axes(node, x, axes)
    terms = math.prod(program.inner_shape(x)[axis] for axis in inner)
    sums = program.summed(node, held, terms)
    return program.emit("sum", node, [held], sums, settings={"axes": inner})


RULES: dict[str, Rule] = {
    **table(_conv, "conv1d conv2d"),
    **table(_linear, "linear"),
    "spikeformers::lif": _lif,
    **table(_add, "add"),
    **table(_rsub, "rsub"),
    **table(_mul, "mul div"),
    **table(_matmul, "matmul bmm"),
    **table(_sum, "sum"),
    **POOLS,
    **MOVES,
}
"""How each operator becomes operations."""
