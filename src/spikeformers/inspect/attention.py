"""Where attention fires: the only map that softmax-free attention has.

Spike-driven self-attention has no matrix of weights between tokens. What each token receives is
the operator's output, the spikes that enter the projection behind it. Their rate at each place of
the map, over channels and time steps, says how much of the answer comes from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

See = Callable[[str, Tensor], None]


@contextmanager
def watching_attention(model: nn.Module, see: See) -> Iterator[None]:
    """Call `see` with the path and the map `[B, H, W]` of every attention module that runs.

    Attention modules are those with children `q` and `proj`, whatever their class, on
    channel-first maps `[T, B, C, H, W]`.
    """
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            parts = dict(module.named_children())
            if {"q", "proj"} <= set(parts):
                hook = _hook(name, see)
                hooks.callback(parts["proj"].register_forward_pre_hook(hook).remove)
        yield


def _hook(name: str, see: See) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_proj: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        spikes = inputs[0].detach()
        if spikes.ndim == 5:
            see(name, spikes.mean((0, 2), dtype=torch.float32))

    return hook
