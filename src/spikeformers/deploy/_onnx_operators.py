"""How each PyTorch operator is written in ONNX.

A translation gets the writer, the node and the node's arguments, and returns the name of the ONNX
tensor that holds the result, or a tuple of names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from spikeformers.errors import ExportError

if TYPE_CHECKING:
    from spikeformers.deploy._onnx_graph import Writer

Translation = Callable[..., Any]

OPERATORS: dict[str, Translation] = {}
"""PyTorch's name -> its translation."""


def writes(*names: str) -> Callable[[Translation], Translation]:
    """Enter a translation into the table."""

    def enter(translation: Translation) -> Translation:
        OPERATORS.update(dict.fromkeys(names, translation))
        return translation

    return enter


def same_in_onnx(op: str) -> Translation:
    """Return the translation of an elementwise operator that takes the same operands in ONNX."""

    def translation(write: Writer, node: Node, *operands: Any, **options: Any) -> str:
        if any(options.values()):
            raise ExportError(f"ONNX has no {op} with the option {next(iter(options))}")
        tensors = [operand.meta["val"] for operand in operands if isinstance(operand, Node)]
        dtype = torch.result_type(*(tensors * 2)[:2])
        return write.emit(op, *(write.operand(o, dtype) for o in operands), name=node.name)

    return translation


OPERATORS |= {
    f"aten::{name}": same_in_onnx(op)
    for name, op in {
        "__and__": "And",
        "add": "Add",
        "bitwise_and": "And",
        "div": "Div",
        "exp": "Exp",
        "floor": "Floor",
        "ge": "GreaterOrEqual",
        "gt": "Greater",
        "le": "LessOrEqual",
        "logical_and": "And",
        "lt": "Less",
        "matmul": "MatMul",
        "mul": "Mul",
        "neg": "Neg",
        "relu": "Relu",
        "round": "Round",
        "sigmoid": "Sigmoid",
        "sqrt": "Sqrt",
        "sub": "Sub",
        "tanh": "Tanh",
    }.items()
}


@writes("aten::rsub")
def _rsub(write: Writer, node: Node, x: Node, other: Any) -> str:
    return OPERATORS["aten::sub"](write, node, other, x)


@writes("aten::clamp")
def _clamp(write: Writer, node: Node, x: Node, low: Any = None, high: Any = None) -> str:
    dtype = node.meta["val"].dtype
    bounds = ["" if bound is None else write.operand(bound, dtype) for bound in (low, high)]
    return write.emit("Clip", write.operand(x), *bounds, name=node.name)


@writes("aten::_to_copy", "aten::to")
def _cast(write: Writer, node: Node, x: Node, *_: Any, **__: Any) -> str:
    return write.operand(x, node.meta["val"].dtype)


@writes("aten::clone", "aten::detach", "aten::alias", "aten::contiguous", "aten::dropout")
def _same(write: Writer, node: Node, x: Node, *_: Any, **__: Any) -> str:
    del node
    return write.operand(x)


@writes("getitem")
def _getitem(write: Writer, node: Node, many: Node, i: int) -> str:
    del node
    return write.scope.names[many][i]


@writes(
    "aten::view",
    "aten::reshape",
    "aten::flatten",
    "aten::unflatten",
    "aten::unsqueeze",
    "aten::squeeze",
)
def _reshape(write: Writer, node: Node, x: Node, *_: Any) -> str:
    sizes = write.operand(write.sizes(node))
    return write.emit("Reshape", write.operand(x), sizes, name=node.name)


@writes("aten::expand")
def _expand(write: Writer, node: Node, x: Node, *_: Any) -> str:
    return write.emit("Expand", write.operand(x), write.shape(node), name=node.name)


@writes("aten::full", "aten::full_like", "aten::new_full")
def _full(write: Writer, node: Node, _: Any, *rest: Any, **__: Any) -> str:
    value = write.operand(rest[-1], node.meta["val"].dtype)
    return write.emit("Expand", value, write.shape(node), name=node.name)


@writes("aten::zeros", "aten::zeros_like", "aten::new_zeros")
def _zeros(write: Writer, node: Node, *_: Any, **__: Any) -> str:
    return _full(write, node, None, 0)


@writes("aten::transpose")
def _transpose(write: Writer, node: Node, x: Node, a: int, b: int) -> str:
    order = list(range(x.meta["val"].ndim))
    order[a], order[b] = order[b], order[a]
    return write.emit("Transpose", write.operand(x), name=node.name, perm=order)


@writes("aten::permute")
def _permute(write: Writer, node: Node, x: Node, order: Sequence[int]) -> str:
    order = [axis % len(order) for axis in order]
    return write.emit("Transpose", write.operand(x), name=node.name, perm=order)


@writes("aten::select")
def _select(write: Writer, node: Node, x: Node, axis: int, i: int) -> str:
    return write.emit("Gather", write.operand(x), write.operand(i), name=node.name, axis=axis)


@writes("aten::unbind")
def _unbind(write: Writer, node: Node, x: Node, axis: int = 0) -> tuple[str, ...]:
    return tuple(
        write.emit("Gather", write.operand(x), write.operand(i), name=f"{node.name}.{i}", axis=axis)
        for i in range(len(node.meta["val"]))
    )


@writes("aten::slice")
def _slice(
    write: Writer,
    node: Node,
    x: Node,
    axis: int = 0,
    start: int = 0,
    end: Any = None,
    step: int = 1,
) -> str:
    end = torch.iinfo(torch.int64).max if end is None else end
    limits = ([start or 0], [end], [axis], [step])
    return write.emit("Slice", write.operand(x), *map(write.operand, limits), name=node.name)


@writes("aten::split", "aten::split_with_sizes", "aten::chunk")
def _split(write: Writer, node: Node, x: Node, _: Any, axis: int = 0) -> tuple[str, ...]:
    sizes = [part.shape[axis] for part in node.meta["val"]]
    names = write.emit(
        "Split",
        write.operand(x),
        write.operand(sizes),
        name=node.name,
        outputs=len(sizes),
        axis=axis,
    )
    return names if isinstance(names, tuple) else (names,)


@writes("aten::cat")
def _cat(write: Writer, node: Node, parts: Sequence[Node], axis: int = 0) -> str:
    return write.emit("Concat", *map(write.operand, parts), name=node.name, axis=axis)


@writes("aten::stack")
def _stack(write: Writer, node: Node, parts: Sequence[Node], axis: int = 0) -> str:
    wider = [
        write.emit("Unsqueeze", write.operand(part), write.operand([axis]), name=f"{node.name}/{i}")
        for i, part in enumerate(parts)
    ]
    return write.emit("Concat", *wider, name=node.name, axis=axis)


def _reduce(op: str) -> Translation:
    def translation(
        write: Writer, node: Node, x: Node, axes: Any = None, keepdim: bool = False, **_: Any
    ) -> str:
        axes = [axes] if isinstance(axes, int) else axes or range(x.meta["val"].ndim)
        inputs = (write.operand(x), write.operand(list(axes)))
        return write.emit(op, *inputs, name=node.name, keepdims=int(keepdim))

    return translation


OPERATORS |= {
    "aten::amax": _reduce("ReduceMax"),
    "aten::mean": _reduce("ReduceMean"),
    "aten::sum": _reduce("ReduceSum"),
}


@writes("aten::cumsum")
def _cumsum(write: Writer, node: Node, x: Node, axis: int) -> str:
    return write.emit("CumSum", write.operand(x), write.operand(axis), name=node.name)


@writes("aten::linear")
def _linear(write: Writer, node: Node, x: Node, weight: Node, bias: Node | None = None) -> str:
    turned = write.emit("Transpose", write.operand(weight), name=f"{node.name}/weight", perm=[1, 0])
    name = node.name if bias is None else f"{node.name}/product"
    y = write.emit("MatMul", write.operand(x), turned, name=name)
    return y if bias is None else write.emit("Add", y, write.operand(bias), name=node.name)


@writes("aten::conv1d", "aten::conv2d")
def _conv(
    write: Writer,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> str:
    axes = x.meta["val"].ndim - 2
    inputs = [write.operand(tensor) for tensor in (x, weight, bias) if tensor is not None]
    return write.emit(
        "Conv",
        *inputs,
        name=node.name,
        strides=_each(stride, axes),
        pads=_each(padding, axes) * 2,
        dilations=_each(dilation, axes),
        group=groups,
    )


def _each(value: Any, axes: int) -> list[int]:
    """Return one value per axis; PyTorch lets one stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


@writes("aten::max_pool2d")
def _max_pool(
    write: Writer,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> str:
    return write.emit(
        "MaxPool",
        write.operand(x),
        name=node.name,
        kernel_shape=_each(kernel, 2),
        strides=_each(stride or kernel, 2),
        pads=_each(padding, 2) * 2,
        dilations=_each(dilation, 2),
        ceil_mode=int(ceil),
    )


@writes("aten::avg_pool2d")
def _avg_pool(
    write: Writer,
    node: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    counts_padding: bool = True,
) -> str:
    return write.emit(
        "AveragePool",
        write.operand(x),
        name=node.name,
        kernel_shape=_each(kernel, 2),
        strides=_each(stride or kernel, 2),
        pads=_each(padding, 2) * 2,
        ceil_mode=int(ceil),
        count_include_pad=int(counts_padding),
    )


@writes("aten::upsample_nearest2d")
def _upsample(write: Writer, node: Node, x: Node, *_: Any) -> str:
    before, after = x.meta["val"].shape, node.meta["val"].shape
    scales = [1.0, 1.0, *(int(b) / int(a) for a, b in zip(before[2:], after[2:], strict=True))]
    return write.emit(
        "Resize",
        write.operand(x),
        "",
        write.operand(scales),
        name=node.name,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
