"""The only door to recomputation: trade time for memory without changing any number."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


def reversible(branches: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Let the channel halves of `x` take turns, and keep only the result for the backward pass.

    `a, b = b, a + branch(b)` for every branch. The backward pass restores what each branch saw,
    `a, b = b - branch(a), a`, and runs it a second time: memory does not grow with their number.
    Gradients and running statistics equal those of the plain run, as in `recompute`.

    The halves are summed in double precision, so that the difference gives back the very number
    that was summed: in the precision of a float32 or 16-bit model it would be off by a rounding,
    which can flip a spike. While a model is compiled, the run is the plain one and the compiler
    decides what it keeps.

    Args:
        branches: An even number, so that each half ends in its place. They draw no random numbers.
        x: `[T, B, C, ...]` with an even `C`.

    Reference:
        Gomez et al., "The Reversible Residual Network", NeurIPS 2017, arXiv:1707.04585.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return take_turns(branches, x, x.dtype)
    parameters = (p for branch in branches for p in branch.parameters() if p.requires_grad)
    return _Reversible.apply(branches, x, *dict.fromkeys(parameters))


def take_turns(branches: Sequence[nn.Module], x: Tensor, precision: torch.dtype) -> Tensor:
    """Return what `reversible` returns, in the precision of the sums; autograd keeps everything."""
    a, b = x.to(precision).chunk(2, dim=2)
    for branch in branches:
        a, b = b, a + branch(b.to(x.dtype))
    return torch.cat([a, b], dim=2)


class _Reversible(torch.autograd.Function):
    """See `reversible`. The parameters are arguments so that autograd hands on their gradients."""

    @staticmethod
    def forward(ctx: Any, branches: Sequence[nn.Module], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.branches, ctx.parameters, ctx.dtype = branches, parameters, x.dtype
        ctx.norms = [m for b in branches for m in b.modules() if isinstance(m, _BatchNorm)]
        ctx.after_first = []
        ctx.autocast = _autocast_of(x)
        with _first_run(ctx.norms, ctx.after_first):
            y = take_turns(branches, x, torch.float64)
        ctx.save_for_backward(y)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors[0].chunk(2, dim=2)
        grad_a, grad_b = grad.chunk(2, dim=2)
        totals: dict[Tensor, Tensor] = {}
        with _second_run(ctx.norms, ctx.after_first), ctx.autocast(), torch.enable_grad():
            for branch in reversed(ctx.branches):
                seen = a.to(ctx.dtype).detach().requires_grad_()
                y = branch(seen)
                own = [p for p in branch.parameters() if p.requires_grad]
                grad_seen, *grads = torch.autograd.grad(y, [seen, *own], grad_b.to(y.dtype))
                for p, g in zip(own, grads, strict=True):
                    totals[p] = totals[p] + g if p in totals else g
                a, b = b - y.detach(), a
                grad_a, grad_b = grad_b, grad_a + grad_seen
        return None, torch.cat([grad_a, grad_b], dim=2), *[totals[p] for p in ctx.parameters]


def _autocast_of(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """Return a maker of the current autocast context, for a later time.

    Weights that were cast in the first run, which records no gradient, must not be used again.
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype, enabled, cache_enabled=False)


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
