"""How often neurons fire, seen from outside: forward hooks on every `Neuron`, no change to a model.

The firing rate is spikes / (neurons * T). For integer neurons a spike counts its value, because
that is how many binary spikes it becomes on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeformers.neurons import LIF, Neuron
from spikeformers.ops.lif.reference import along_channels, lif_forward

Witness = Callable[[str, Neuron, Tensor, Tensor], None]
"""Called with the path of a neuron, itself, its current `[T, B, ...]` and its spikes."""


@dataclass(frozen=True)
class Potentials:
    """What a layer of neurons went through while it ran, `[T, ...]` like its current.

    Attributes:
        after: Membrane after each step and its reset.
        before: Membrane that was compared with the threshold; `None` for a neuron with another
            equation than LIF's.
        threshold: What it was compared with, broadcastable to one step; `None` as above.
    """

    after: Tensor
    before: Tensor | None = None
    threshold: Tensor | None = None


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
    recorded: dict[str, Tensor] = {}

    def keep(name: str, _neuron: Neuron, _current: Tensor, spikes: Tensor) -> None:
        recorded[name] = spikes

    with watching(model, keep):
        yield recorded


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
    def measure(name: str, _neuron: Neuron, _current: Tensor, spikes: Tensor) -> None:
        rates[name] = spikes.flatten(1).mean(1, dtype=torch.float32).tolist()

    with evaluating(model), watching(model, measure):
        model(x)
    return {name: rates[name] for name, _ in model.named_modules() if name in rates}


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[Tensor]:
    """Count what all neurons of a model emit inside the `with` block.

    Args:
        model: Any module that holds neurons.

    Yields:
        Two sums that grow, float64 `[2]`: spikes, and neurons * T. The first over the second is the
        mean firing rate of the model.
    """
    counts = torch.zeros(2, dtype=torch.float64)

    def add(_name: str, _neuron: Neuron, _current: Tensor, spikes: Tensor) -> None:
        emitted = spikes.sum(dtype=torch.float64).item()
        counts.add_(torch.tensor([emitted, spikes.numel()], dtype=torch.float64))

    with watching(model, add):
        yield counts


@torch.no_grad()
def potentials(neuron: Neuron, current: Tensor) -> Potentials:
    """Replay a layer of neurons from rest and return its membrane at every step.

    Args:
        neuron: Any neuron; it is not changed.
        current: What it integrated, `[T, ...]`.
    """
    # The membrane after t steps is what a run over t steps ends with, for any neuron.
    after = torch.stack([neuron.fire(current[: t + 1])[1] for t in range(len(current))])
    # Whoever fires in another way has another equation.
    if not isinstance(neuron, LIF) or type(neuron).fire is not LIF.fire:
        return Potentials(after)
    decay, threshold = (
        torch.as_tensor(value, dtype=after.dtype, device=after.device)
        for value in (neuron.decay, neuron.threshold)
    )
    _, _, before = lif_forward(
        current,
        None,
        decay,
        threshold,
        neuron.v_reset,
        neuron.decay_input,
        neuron.detach_reset,
        neuron.surrogate,
        1.0,  # The surrogate's sharpness, which shapes gradients only.
        neuron.strict,
    )
    return Potentials(after, before, along_channels(threshold, current[0]))


@contextmanager
def watching(model: nn.Module, see: Witness) -> Iterator[None]:
    """Call `see` after every neuron of a model that runs; the hooks leave with the block.

    Args:
        model: Any module that holds neurons.
        see: Gets path, neuron, current and spikes, without gradient. What it does not keep is
            freed, so that the tensors of only one layer are alive at a time.
    """
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Neuron):
                hooks.callback(module.register_forward_hook(_hook(name, see)).remove)
        yield


def _hook(name: str, see: Witness) -> Callable[[Neuron, tuple[Tensor, ...], Tensor], None]:
    """Bind a path to `see`; a function of its own, since closures in a loop share the last name."""

    def hook(neuron: Neuron, inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
        see(name, neuron, inputs[0].detach(), spikes.detach())

    return hook
