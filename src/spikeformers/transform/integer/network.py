"""The integer network: a program of additions, shifts and comparisons, as data.

`docs/reference/integer-network.md` says what every operation means; `arithmetic.py` performs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeformers.errors import CheckpointError, InputError
from spikeformers.transform.integer.arithmetic import PERFORM, fire

_HEADER = "spikeformers"
_FORMAT = {"format": "integer-network", "version": 1}
_INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a program, and what is known about its result.

    Attributes:
        kind: What it does: "synapse", "neuron", "add" and so on.
        name: Of its result.
        path: Of the module that it belongs to.
        inputs: Names of earlier results; "image" is the image.
        shape: Of its result, for one step of one sample.
        scale: What one unit of its result stands for.
        low: Bound of its result from below; `None` if there is none.
        high: Bound from above.
        settings: Its numbers.
        tensors: Its weights and thresholds by name.
    """

    kind: str
    name: str
    path: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    scale: float
    low: int | None = None
    high: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What one time step has brought.

    Attributes:
        values: Name of an operation -> its result, integers `[B, *shape]`.
        membranes: Name of a neuron -> its membrane after the step, `[B, *shape]`.
        additions: Name of an operation -> how many additions it performed, all samples together.
    """

    values: dict[str, Tensor]
    membranes: dict[str, Tensor]
    additions: dict[str, int]


@dataclass(frozen=True)
class IntegerNetwork:
    """A network of integers; see `quantize`.

    Attributes:
        operations: The program of one time step, in the order in which it runs.
        image: Shape of one step of one sample, `(C, H, W)`.
        fraction_bits: Position of the binary point of currents.
    """

    operations: tuple[Operation, ...]
    image: tuple[int, ...]
    fraction_bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return the integer scores of every step, `[T, B, C, H, W]` -> `[T, B, K]`."""
        return self.run(x)[0]

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, int]]:
        """Return the scores, and how many additions each operation has performed."""
        scores, additions = [], Counter[str]()
        for step in self.steps(x):
            scores.append(step.values[self.operations[-1].name])
            additions.update(step.additions)
        return torch.stack(scores), dict(additions)

    def readout(self, scores: Tensor) -> Tensor:
        """Sum the scores over the steps, `[T, B, K]` -> `[B, K]`."""
        return scores.sum(0)

    def steps(self, x: Tensor) -> Iterator[Step]:
        """Run the program step by step, from rest.

        Args:
            x: The encoded input, real numbers `[T, B, C, H, W]`.

        Raises:
            InputError: If the input has another shape, or a result does not fit into 32 bits.
        """
        if x.ndim < 3 or tuple(x.shape[2:]) != self.image:
            raise InputError(
                f"x has shape {list(x.shape)}: expected [T, B, {', '.join(map(str, self.image))}], "
                "as the network was quantised for"
            )
        membranes: dict[str, Tensor] = {}
        for image in x:
            step = Step({"image": image.cpu().double()}, membranes, {})
            for operation in self.operations:
                self._perform(operation, step)
            yield step
            membranes = step.membranes.copy()

    def _perform(self, operation: Operation, step: Step) -> None:
        inputs = [step.values[name] for name in operation.inputs]
        if operation.kind == "neuron":
            rest = torch.zeros_like(inputs[0])
            result, v = fire(operation, inputs[0], step.membranes.get(operation.name, rest))
            step.membranes[operation.name] = _checked(operation, v)
            step.additions[operation.name] = 0
        else:
            result, step.additions[operation.name] = PERFORM[operation.kind](operation, *inputs)
        if tuple(result.shape[1:]) != operation.shape:
            raise InputError(f"{operation.name} gave {list(result.shape)}: the program is damaged")
        step.values[operation.name] = _checked(operation, result)

    def summary(self) -> str:
        """Count the operations, those on real numbers and those that multiply."""
        kinds = Counter(operation.kind for operation in self.operations)
        encoders = [operation.path for operation in self.operations if operation.kind == "encode"]
        weights = sum(
            op.tensors["weight"].numel()
            for op in self.operations
            if op.tensors.get("weight") is not None
        )
        return "\n".join(
            [
                f"{sum(kinds.values())} operations: "
                + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
                f"{weights:,} weights of 8 bits; currents have {self.fraction_bits} fraction bits",
                f"on real numbers, with multiplications: {', '.join(encoders)} (encoding)",
                "after it: 0 floating-point operations, 0 multiplications",
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a safetensors file, completely or not at all.

        Raises:
            CheckpointError: If the file cannot be written; nothing is left behind.
        """
        # Imported where it is used: `import spikeformers` needs torch, numpy and PyYAML alone.
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        header = {
            **_FORMAT,
            "image": self.image,
            "fraction_bits": self.fraction_bits,
            "output": self.operations[-1].name,
            "operations": [_without_tensors(operation) for operation in self.operations],
        }
        tensors = {
            f"{op.name}.{key}": tensor.contiguous()
            for op in self.operations
            for key, tensor in op.tensors.items()
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={_HEADER: json.dumps(header)})
            os.replace(partial, path)
        except (OSError, RuntimeError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise CheckpointError(f"cannot write {path}: {error}") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> IntegerNetwork:
        """Read a network that `save` wrote; nothing in the file is executed.

        Raises:
            CheckpointError: If the file is missing, damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is missing, damaged or no safetensors file") from error
        if any(header.get(key) != value for key, value in _FORMAT.items()):
            raise CheckpointError(f"{path} holds no integer network: make one with sf.quantize")
        operations = tuple(_operation(entry, tensors) for entry in header["operations"])
        return IntegerNetwork(operations, tuple(header["image"]), header["fraction_bits"])


def _checked(operation: Operation, value: Tensor) -> Tensor:
    """Return integers that fit into 32 bits; raise for anything else."""
    if value.is_floating_point():
        raise InputError(f"{operation.name} gave {value.dtype}: expected integers after encoding")
    low, high = (int(bound) for bound in torch.aminmax(value)) if value.numel() else (0, 0)
    if low < _INT32.min or high > _INT32.max:
        raise InputError(
            f"{operation.path} ({operation.name}) reaches {max(-low, high)}: int32 overflows"
        )
    return value


def _without_tensors(operation: Operation) -> dict[str, Any]:
    entry = {f.name: getattr(operation, f.name) for f in dataclasses.fields(operation)}
    return {**entry, "tensors": sorted(operation.tensors)}


def _operation(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> Operation:
    entry = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    own = {key: tensors[f"{entry['name']}.{key}"] for key in entry["tensors"]}
    return Operation(**{**entry, "tensors": own})
