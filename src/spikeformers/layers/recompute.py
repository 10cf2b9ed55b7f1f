"""The only door to recomputation: trade time for memory without changing any number."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """Return `module(x)`, keeping only `x` for the backward pass, which runs `module` again.

    Gradients, running statistics and the borders of `RepConv` equal those of the plain call: the
    second run sees the running statistics that the first one left, and does not update them again.

    Reference:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
    """
    if not torch.is_grad_enabled():
        return module(x)
    contexts = partial(_contexts, [m for m in module.modules() if isinstance(m, _BatchNorm)])
    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first and of the second run, which share the statistics after the first."""
    after_first: list[dict[str, Any]] = []
    return _first_run(norms, after_first), _second_run(norms, after_first)


@contextmanager
def _first_run(norms: list[_BatchNorm], after_first: list[dict[str, Any]]) -> Iterator[None]:
    yield
    after_first.extend(_statistics(norm) for norm in norms)


@contextmanager
def _second_run(norms: list[_BatchNorm], after_first: list[dict[str, Any]]) -> Iterator[None]:
    now = [_statistics(norm) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm, statistics in zip(norms, after_first, strict=True):
        _restore(norm, statistics)
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, statistics, momentum in zip(norms, now, momenta, strict=True):
            _restore(norm, statistics)
            norm.momentum = momentum


def _statistics(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers()}


def _restore(norm: _BatchNorm, statistics: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in norm.named_buffers():
            buffer.copy_(statistics[name])
