"""Does data keep what the audit claims? Every value of every operation, in its alphabet or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from spikeformers.analysis.alphabet import Facts
from spikeformers.analysis.capture import Graph, short_name
from spikeformers.analysis.value import Origin, is_from
from spikeformers.errors import ClaimError, InputError
from spikeformers.types import Alphabet

__all__ = ["Observed", "observe", "stray"]


@dataclass(frozen=True)
class Observed:
    """How much data kept the claims of an audit.

    Attributes:
        samples: Inputs that the graph ran on.
        tensors: Results of the graph that the audit claims an alphabet for.
        values: How many values they held, over all samples.
    """

    samples: int
    tensors: int
    values: int

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"all {self.values:,} values of {self.tensors} tensors on {self.samples:,} samples "
            "are as claimed"
        )


def observe(
    graph: Graph, facts: Facts, batches: Tensor | Iterable[Tensor], shape: torch.Size
) -> Observed:
    """Run a graph on data and compare all values with their alphabets.

    Args:
        graph: What an audit read.
        facts: What it claims.
        batches: Inputs `[T, n B, ...]`, or several of them.
        shape: The captured shape `[T, B, ...]`.

    Raises:
        InputError: If there is no data, or it does not divide into inputs of the captured shape.
        ClaimError: If a value contradicts its claim.
    """
    samples = values = 0
    claimed: set[tuple[Node, int]] = set()
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        for x in _parts(batch, shape):
            samples += x.shape[1]
            for node, seen in graph.run(x):
                for i, (claim, tensor) in enumerate(_claims(facts.values.get(node), seen)):
                    if (value := stray(claim, tensor)) is not None:
                        raise ClaimError(_contradiction(graph, node, claim, value))
                    claimed.add((node, i))
                    values += tensor.numel()
    if not samples:
        raise InputError("verify is empty: expected data to compare the claims with")
    return Observed(samples, len(claimed), values)


def stray(alphabet: Alphabet, tensor: Tensor) -> float | None:
    """Return a value that is not `scale * {low, ..., high}` up to rounding, if there is one.

    Of a learned scale only the number of different values is known.
    """
    if alphabet.scale is None:
        different = tensor.unique()
        steps = different.diff() > 1e-5 * different.abs().max()
        is_too_many = int(steps.sum()) > alphabet.high - alphabet.low
        return different[-1].item() if is_too_many else None
    steps = tensor.double() / alphabet.scale
    whole = steps.round().clamp(alphabet.low, alphabet.high)
    # Comparing this way round, nan is a stray, too.
    outside = ~((steps - whole).abs() <= 1e-4 + 1e-6 * whole.abs())
    return tensor[outside][0].item() if outside.any() else None


def _parts(batch: Any, shape: torch.Size) -> tuple[Tensor, ...]:
    """Cut a batch into inputs of the captured shape."""
    fits = isinstance(batch, Tensor) and batch.ndim == len(shape)
    if not fits or batch.shape[1] % shape[1] or batch[:, : shape[1]].shape != shape:
        got = list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
        raise InputError(f"verify holds {got}: expected {list(shape)}, the shape of the example")
    # A graph views its input as one block of memory.
    return tuple(part.contiguous() for part in batch.split(shape[1], dim=1))


def _claims(value: Any, seen: Any) -> Iterator[tuple[Alphabet, Tensor]]:
    """Pair alphabets with tensors; a custom op may have several outputs."""
    several = zip(value, seen, strict=True) if isinstance(value, tuple) else [(value, seen)]
    for claim, tensor in several:
        is_signal = is_from(claim, Origin.SIGNAL) and isinstance(tensor, Tensor)
        if is_signal and claim.alphabet is not None:
            yield claim.alphabet, tensor


def _contradiction(graph: Graph, node: Node, claim: Alphabet, value: float) -> str:
    if node.op == "placeholder":
        return f"the data holds {value:g}, but every input was claimed to be in {claim}"
    where = f"{graph.path(node) or '(model)'} ({short_name(node)})"
    return f"{where} gives {value:g}, but the audit claims {claim}"
