"""Streaming: run a model over time in chunks, with the state in the caller's hands.

    state = None
    for chunk in camera:                     # [T, B, C, H, W], any T
        y, state = advance(model, chunk, state)

Any chunking gives what one pass would give. One model object serves many streams, one call at a
time; threads share weights through separate module objects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformers.errors import InputError
from spikeformers.neurons import AcrossBatch, Carried, Stateful
from spikeformers.types import State


@contextmanager
def bind(model: nn.Module, state: State | None) -> Iterator[State]:
    """Lend `state` to the stateful modules of `model`; on exit the yielded dict holds the new one.

    State keys are `<module path>.<name>`, for example `head.neuron.membrane`.

    Raises:
        InputError: If `state` has keys of another model.
    """
    modules = {path: m for path, m in model.named_modules() if isinstance(m, Stateful)}
    carried = {path: Carried({}) for path in modules}
    for key, tensor in (state or {}).items():
        path, _, name = key.rpartition(".")
        if path not in carried:
            raise InputError(
                f"state has {key!r}, which this model does not: is it another model's?"
            )
        carried[path].before[name] = tensor
    after: State = {}
    for path, module in modules.items():
        module.carried = carried[path]
    try:
        yield after
        for path, lent in carried.items():
            if unknown := set(lent.before) - set(lent.after):
                raise InputError(f"state has '{path}.{unknown.pop()}', which the model did not use")
            after.update({f"{path}.{name}": tensor for name, tensor in lent.after.items()})
    finally:
        for module in modules.values():
            module.carried = None


def advance(model: nn.Module, x: Tensor, state: State | None = None) -> tuple[Any, State]:
    """Run `model` on the next chunk of a stream.

    Args:
        model: A model in eval mode (or without batch norm).
        x: The next time steps.
        state: What the last call returned; `None` starts at rest. It is not changed.

    Shape:
        x `[T, B, ...]` with any `T >= 1` -> `[T, B, ...]`.

    Returns:
        The model's output for these steps, and the state after them. Both are differentiable;
        detach the state to cut the gradient between chunks.

    Raises:
        InputError: If a batch norm is in training mode (chunking would change its statistics), if
            the model mixes samples (`AcrossBatch`), or if `state` belongs to another model.
    """
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(f"batch norm {path!r} is in training mode: call model.eval() first")
        if isinstance(module, AcrossBatch):
            raise InputError(f"{path!r} integrates across the batch and cannot stream")
    with bind(model, state) as after:
        y = model(x)
    return y, after


class Stream:
    """One stream: `advance` with the state kept inside.

    Args:
        model: A model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state: State | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the model's output `[T, B, ...]` for the next steps."""
        y, self.state = advance(self.model, x, self.state)
        return y
