"""How each operator of PyTorch turns what its operands can hold into what its result can hold.

The rules take the node and its arguments, tensors as `Value`, and return the result's alphabet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from spikeformers.analysis.capture import factors_of, op_name
from spikeformers.analysis.value import Origin, Value, is_from
from spikeformers.types import ANALOG, Alphabet

__all__ = [
    "AVERAGES",
    "ELEMENTWISE",
    "FACTORIES",
    "KEEPING",
    "MAXIMA",
    "NORMS",
    "PRODUCTS",
    "RULES",
    "SUMS",
    "Uncovered",
    "averaged",
    "fixed",
    "uncovered",
]


class Uncovered(Exception):
    """An operator is in the table, but not with these arguments."""


def _number(c: int | float) -> Alphabet | None:
    """Return the alphabet of a constant."""
    if c == 0 or not math.isfinite(c):
        return Alphabet(0, 0) if c == 0 else ANALOG
    sign = 1 if c > 0 else -1
    return Alphabet(sign, sign, abs(float(c)))


def _of(operand: Any) -> Alphabet | None:
    """Return the alphabet of an operand: a tensor or a number."""
    return operand.alphabet if isinstance(operand, Value) else _number(operand)


def fixed(operand: Any) -> float | None:
    """Return the number that a constant operand is known to be, if it is."""
    alphabet = _of(operand)
    if isinstance(operand, Value) and operand.origin is not Origin.CONSTANT:
        return None
    if alphabet is None or alphabet.scale is None or alphabet.low != alphabet.high:
        return None
    return alphabet.low * alphabet.scale


def _alike(a: Alphabet | None, b: Alphabet | None) -> tuple[Alphabet, Alphabet] | None:
    """Write two alphabets with one scale; a constant adapts to the other. `None`: impossible."""
    if a is None or b is None:
        return None
    if a.scale is not None and b.scale is not None and math.isclose(a.scale, b.scale):
        return a, b
    if (fitted := _fitted(a, b.scale)) is not None:
        return fitted, b
    return None if (fitted := _fitted(b, a.scale)) is None else (a, fitted)


def _fitted(constant: Alphabet, scale: float | None) -> Alphabet | None:
    """Write a constant as a multiple of a scale. `None`: impossible."""
    if constant.low == constant.high == 0:
        return Alphabet(0, 0, scale)  # Zero is a multiple even of a learned scale.
    if constant.low != constant.high or constant.scale is None or scale is None:
        return None
    steps = constant.low * constant.scale / scale
    is_whole = math.isclose(steps, round(steps), abs_tol=1e-9)
    return Alphabet(round(steps), round(steps), scale) if is_whole else None


def _plus(a: Alphabet | None, b: Alphabet | None) -> Alphabet | None:
    if (pair := _alike(a, b)) is None:
        return ANALOG
    a, b = pair
    return Alphabet(a.low + b.low, a.high + b.high, a.scale)


def _hull(a: Alphabet | None, b: Alphabet | None) -> Alphabet | None:
    """Return the alphabet of a tensor that holds values of both."""
    if (pair := _alike(a, b)) is None:
        return ANALOG
    a, b = pair
    return Alphabet(min(a.low, b.low), max(a.high, b.high), a.scale)


def _times(a: Alphabet | None, b: Alphabet | None) -> Alphabet | None:
    if a is None or b is None:
        return ANALOG
    corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    scale = None if a.scale is None or b.scale is None else a.scale * b.scale
    return Alphabet(min(corners), max(corners), scale)


def _total(a: Alphabet | None, n: int) -> Alphabet | None:
    """Return the alphabet of a sum of `n` values."""
    return ANALOG if a is None else replace(a, low=n * a.low, high=n * a.high)


def uncovered(*_: Any, **__: Any) -> Alphabet | None:
    """Say that there is no rule."""
    raise Uncovered


def _keep(_: Node, x: Value, *__: Any, **options: Any) -> Alphabet | None:
    if not (options.get("dtype") or torch.float32).is_floating_point:
        raise Uncovered
    return x.alphabet


def _analog(*_: Any) -> Alphabet | None:
    return ANALOG


def _filled(node: Node, *args: Any, **_: Any) -> Alphabet | None:
    name = op_name(node)
    return _number(0 if "zeros" in name else 1 if "ones" in name else args[-1])


def _add(_: Node, a: Any, b: Any, alpha: int | float = 1) -> Alphabet | None:
    if alpha != 1:
        raise Uncovered
    return _plus(_of(a), _of(b))


def _sub(node: Node, a: Any, b: Any, alpha: int | float = 1) -> Alphabet | None:
    return _add(node, a, Value(Origin.SIGNAL, _neg(node, b)), alpha)


def _rsub(node: Node, a: Any, b: Any, alpha: int | float = 1) -> Alphabet | None:
    return _sub(node, b, a, alpha)


def _neg(_: Node, a: Any) -> Alphabet | None:
    return _times(_number(-1), _of(a))


def _relu(_: Node, x: Value) -> Alphabet | None:
    a = x.alphabet
    if a is None or a.scale is None:
        return ANALOG
    return replace(a, low=max(a.low, 0), high=max(a.high, 0))


def _mul(node: Node, a: Any, b: Any) -> Alphabet | None:
    for values, factor, argument in ((_of(a), b, node.args[1]), (_of(b), a, node.args[0])):
        if values is not None and _is_learned_scalar(factor, argument):
            return replace(values, scale=None)
    return _times(_of(a), _of(b))


def _div(node: Node, a: Any, b: Any, rounding_mode: str | None = None) -> Alphabet | None:
    if rounding_mode is not None:
        raise Uncovered
    values = _of(a)
    if values is not None and _is_learned_scalar(b, node.args[1]):
        return replace(values, scale=None)
    return _times(values, _number(1 / divisor)) if (divisor := fixed(b)) else ANALOG


def _is_learned_scalar(operand: Any, argument: Any) -> bool:
    is_weight = is_from(operand, Origin.CONSTANT) and operand.alphabet is None
    return is_weight and _shape(argument).numel() == 1


def _matmul(node: Node, a: Value, b: Value) -> Alphabet | None:
    return _total(_times(a.alphabet, b.alphabet), _shape(node.args[0])[-1])


def _add_matmul(
    node: Node, c: Value, a: Value, b: Value, beta: int | float = 1, alpha: int | float = 1
) -> Alphabet | None:
    if (beta, alpha) != (1, 1):
        raise Uncovered
    n = _shape(node.args[1])[-1]
    return _plus(c.alphabet, _total(_times(a.alphabet, b.alphabet), n))


def _einsum(node: Node, equation: str, tensors: Sequence[Value], **_: Any) -> Alphabet | None:
    """Sum products of two tensors over the axes that the result lacks."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters = terms.replace(",", "").replace("...", "")
    if not arrow:
        result = "".join(c for c in letters if letters.count(c) == 1)
        result += "..." if "..." in terms else ""
    if len(tensors) != 2 or ("..." in terms) != ("..." in result):
        raise Uncovered
    sizes: dict[str, int] = {}
    for term, argument in zip(terms.split(","), factors_of(node), strict=True):
        front, _dots, back = term.partition("...")
        shape = _shape(argument)
        named = [*zip(front, shape, strict=False), *zip(back[::-1], shape[::-1], strict=False)]
        # An axis of length 1 meets one of any length.
        sizes |= {letter: max(size, sizes.get(letter, 1)) for letter, size in named}
    a, b = (tensor.alphabet for tensor in tensors)
    return _total(_times(a, b), math.prod(n for c, n in sizes.items() if c not in result))


def _sum(node: Node, x: Value, *_: Any, **__: Any) -> Alphabet | None:
    return _total(x.alphabet, averaged(node))


def _mean(node: Node, x: Value, *_: Any, **__: Any) -> Alphabet | None:
    n = averaged(node)
    return _times(_total(x.alphabet, n), _number(1 / n))


def _avg_pool(
    node: Node,
    x: Value,
    _kernel: Sequence[int],
    _stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Alphabet | None:
    if ceil_mode or divisor_override is not None or (any(padding) and not count_include_pad):
        raise Uncovered
    values = _hull(x.alphabet, _number(0)) if any(padding) else x.alphabet
    n = averaged(node)
    return _times(_total(values, n), _number(1 / n))


def _adaptive_avg_pool(node: Node, x: Value, size: Sequence[int]) -> Alphabet | None:
    if any(b % a for b, a in zip(_shape(node.args[0])[-2:], size, strict=True)):
        raise Uncovered
    return _mean(node, x)


def _cat(_: Node, tensors: Sequence[Value], *__: Any) -> Alphabet | None:
    return functools.reduce(_hull, [tensor.alphabet for tensor in tensors])


def _pad(
    _: Node, x: Value, __: Any, mode: str = "constant", value: int | float | None = None
) -> Alphabet | None:
    return _hull(x.alphabet, _number(value or 0)) if mode == "constant" else x.alphabet


def _constant_pad(node: Node, x: Value, widths: Any, value: int | float = 0) -> Alphabet | None:
    return _pad(node, x, widths, "constant", value)


def _shape(argument: Any) -> torch.Size:
    return argument.meta["val"].shape


def averaged(node: Node) -> int:
    """Return how many values a sum, mean or pooling combines into each result."""
    if op_name(node) == "aten::avg_pool2d":
        kernel: Any = node.args[1]
        return math.prod(kernel * 2 if len(kernel) == 1 else kernel)
    return _shape(node.args[0]).numel() // max(_shape(node).numel(), 1)


def _table(rule: Callable[..., Alphabet | None], names: str) -> dict[str, Any]:
    return {f"aten::{name}": rule for name in names.split()}


KEEPING = _table(
    _keep,
    "view _unsafe_view reshape flatten unflatten permute transpose t expand repeat squeeze "
    "unsqueeze select slice split split_with_sizes unbind index_select flip roll clone alias "
    "detach _to_copy lift_fresh_copy upsample_nearest2d pixel_shuffle pixel_unshuffle",
)
MAXIMA = _table(_keep, "max_pool1d max_pool2d max_pool3d amax") | _table(_relu, "relu")
AVERAGES = _table(_mean, "mean") | {
    "aten::avg_pool2d": _avg_pool,
    "aten::adaptive_avg_pool2d": _adaptive_avg_pool,
}
NORMS = _table(_analog, "_native_batch_norm_legit_no_training")
ELEMENTWISE = {"aten::mul": _mul, "aten::div": _div, **NORMS}
PRODUCTS = {
    **ELEMENTWISE,
    **_table(_matmul, "matmul mm bmm"),
    **_table(_add_matmul, "addmm baddbmm"),
    "aten::einsum": _einsum,
    **_table(_analog, "linear conv1d conv2d conv3d"),
    **_table(_analog, "conv_transpose1d conv_transpose2d conv_transpose3d"),
}
SUMS = {
    "aten::sum": _sum,
    **_table(_neg, "neg"),
    **_table(_add, "add"),
    **_table(_sub, "sub"),
    **_table(_rsub, "rsub"),
}
FACTORIES = _table(
    _filled, "full new_full full_like zeros new_zeros zeros_like ones new_ones ones_like"
)
RULES: dict[str, Callable[..., Alphabet | None]] = {
    **KEEPING,
    **MAXIMA,
    **AVERAGES,
    **PRODUCTS,
    **SUMS,
    **_table(_cat, "cat stack"),
    **_table(_pad, "pad"),
    **_table(_constant_pad, "constant_pad_nd"),
    **FACTORIES,
}
"""How each operator of PyTorch turns the alphabets of its arguments into that of its result."""
