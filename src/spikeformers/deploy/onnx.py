"""ONNX files of a model: `export_onnx(model, example, path)`, one-shot or streaming.

| form | inputs | outputs |
|---|---|---|
| one-shot | `image` `[T, B, C, H, W]` | `scores` `[T, B, K]` |
| streaming | `image`, and each state key as `before.<key>` | `scores`, and `after.<key>` |

T is what the example has, B is free. A stream starts with the values that the file's metadata names
under `rest` (JSON, state key -> number); after a call, each `after.<key>` is the next
`before.<key>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from spikeformers.analysis import capture
from spikeformers.deploy._files import new_path
from spikeformers.errors import InputError
from spikeformers.layers import fold
from spikeformers.neurons import AcrossBatch
from spikeformers.streaming import advance
from spikeformers.types import State

__all__ = ["OnnxExport", "export_onnx"]


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The file.
        inputs: Name -> shape.
        outputs: Name -> shape.
        nodes: Number of ONNX nodes.
        bytes: Size of the file.
        check: What onnxruntime made of it, see `Agreement`; `None` if it was not asked.
    """

    path: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    nodes: int
    bytes: int
    check: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        """Write what a user wants to know of the file."""
        lines = [f"{self.path}: {self.nodes} nodes, {self.bytes / 2**20:.1f} MiB"]
        for word, tensors in (("input", self.inputs), ("output", self.outputs)):
            named = list(tensors.items())
            lines += [f"  {word:6} {name} {shape}" for name, shape in named[:3]]
            if len(named) > 3:
                lines.append(f"  {word:6} ... and {len(named) - 3} more, the last {named[-1][0]}")
        if self.check is None:
            return "\n".join([*lines, "not checked"])
        return "\n".join(
            [
                *lines,
                f"onnxruntime agrees: layers to {self.check['layers']:.1e}, the spikes of "
                f"{self.check['neurons']} layers of neurons exactly, "
                f"end to end to {self.check['end_to_end']:.1e}",
            ]
        )


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    stream: bool = False,
    check: bool = True,
) -> OnnxExport:
    """Write the folded model as an ONNX file of plain operators.

    Args:
        model: A float32 model in eval mode; it is not changed.
        example: An input of the shape to export; the batch may later have another size.
        path: A new file.
        stream: Write the streaming form: state goes in and comes out, `T` steps per call.
        check: Run the file in onnxruntime on the example, and keep it only if it agrees to 1e-5.

    Shape:
        example `[T, B, C, H, W]`.

    Raises:
        InputError: If the model is in training mode, not in float32, or mixes samples.
        ExportError: If an operator cannot be written, the file disagrees, or `path` exists.
        MissingExtraError: If onnx or, for the check, onnxruntime is not installed.
    """
    from spikeformers.deploy._onnx_graph import to_onnx

    folded, example = _folded(model, example), example.contiguous()
    with new_path(path) as partial:
        with torch.no_grad():
            state = advance(folded, example)[1] if stream else {}
        exported = _Streaming(folded, list(state)) if state else folded
        pair = [_two(example, 1), *(_two(tensor, 0) for tensor in state.values())]
        graph = capture(exported.eval(), *pair, dynamic_shapes=_open_batch(pair))
        inputs = ["image", *(f"before.{key}" for key in state)]
        count = len(graph.program.graph_signature.user_outputs) - len(state)
        scores = ["scores"] if count == 1 else [f"scores.{i}" for i in range(count)]
        outputs = [*scores, *(f"after.{key}" for key in state)]
        file, neurons = to_onnx(graph, inputs, outputs, _notes(folded, state, len(example)))
        agreement = None
        if check:
            from spikeformers.deploy import _onnx_check

            values = dict(zip(inputs, [example, *state.values()], strict=True))
            agreement = asdict(_onnx_check.check(file, graph, values, neurons))
        content = file.SerializeToString(deterministic=True)
        partial.write_bytes(content)
    return OnnxExport(
        path=str(path),
        inputs={info.name: _shape(info) for info in file.graph.input},
        outputs={info.name: _shape(info) for info in file.graph.output},
        nodes=len(file.graph.node),
        bytes=len(content),
        check=agreement,
    )


class _Streaming(nn.Module):
    """A model as a pure function: input and state in, output and state out."""

    def __init__(self, model: nn.Module, keys: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.keys = keys

    def forward(self, x: Tensor, *before: Tensor) -> tuple[Any, ...]:
        y, after = advance(self.model, x, dict(zip(self.keys, before, strict=True)))
        return y, *(after[key] for key in self.keys)


def _folded(model: nn.Module, example: Tensor) -> nn.Module:
    """Fold a model that can be exported; refuse others."""
    for path, module in model.named_modules():
        if isinstance(module, AcrossBatch):
            raise InputError(f"{path!r} integrates across the batch, so no batch size is free")
    tensors = {"example": example, **model.state_dict()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"{name} is {tensor.dtype}, expected float32: call model.float()")
    return fold(model)


def _two(tensor: Tensor, axis: int) -> Tensor:
    """Return a batch of two, so that its size is seen to be free; a scalar has no batch."""
    if not tensor.ndim:
        return tensor
    first = tensor.narrow(axis, 0, 1)
    return torch.cat([first, first], axis)


def _open_batch(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """Say to `torch.export` which axes are the batch: the second of the image, the first of states.

    The states are one argument of many values.
    """
    image = {1: Dim.DYNAMIC}
    states = tuple({0: Dim.DYNAMIC} if tensor.ndim else None for tensor in inputs[1:])
    return (image, states) if states else (image,)


def _notes(model: nn.Module, state: State, timesteps: int) -> dict[str, str]:
    """Return the file's metadata."""
    modules = dict(model.named_modules())
    rest = {key: getattr(modules[key.rpartition(".")[0]], "v_reset", None) or 0.0 for key in state}
    return {"timesteps": str(timesteps)} | ({"rest": json.dumps(rest)} if rest else {})


def _shape(info: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
