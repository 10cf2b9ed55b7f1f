"""How often neurons fire, seen from outside: forward hooks on every `Neuron`, no change to a model.

The firing rate is spikes / (neurons * T). For integer neurons a spike counts its value, because
that is how many binary spikes it becomes on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from spikeformers.neurons import Neuron


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and every module back in its own mode after."""
    # Module by module, because a model in training may hold frozen parts that are in eval mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def record_spikes(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record what every neuron of a model emits inside the `with` block.

    Args:
        model: Any module that holds neurons.

    Yields:
        Module path -> spikes `[T, B, ...]` without gradient, in the order in which the neurons ran.
        A second forward pass inside the block replaces the first.
    """
    spikes: dict[str, Tensor] = {}
    with _watching(model, spikes.__setitem__):
        yield spikes


def firing_rates(model: nn.Module, x: Tensor) -> dict[str, list[float]]:
    """Run a model once in eval mode and measure how often each neuron fires in each time step.

    Args:
        model: Any module that holds neurons; its training mode is restored.
        x: Encoded batch `[T, B, ...]`.

    Returns:
        Module path -> mean spike value per time step, in module order. Neurons that the forward
        pass does not reach are absent.
    """
    rates: dict[str, list[float]] = {}

    # Reduced inside the hook, so that the spikes of only one layer are alive at a time.
    def measure(name: str, spikes: Tensor) -> None:
        rates[name] = spikes.flatten(1).mean(1, dtype=torch.float32).tolist()

    with evaluating(model), _watching(model, measure):
        model(x)
    return {name: rates[name] for name, _ in model.named_modules() if name in rates}


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(path, spikes)` after every neuron; the hooks leave with the block."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Neuron):
                hooks.callback(module.register_forward_hook(_hook(name, see)).remove)
        yield


def _hook(
    name: str, see: Callable[[str, Tensor], None]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Bind a path to `see`; a function of its own, since closures in a loop share the last name."""

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
        see(name, spikes.detach())

    return hook
