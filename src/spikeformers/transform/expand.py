"""Integer neurons played as binary spikes: every step becomes a window of D sub-steps.

A linear layer of an integer is the sum of that layer over the integer's spikes, so it runs at every
sub-step, with its bias shared out. What is not linear has to know the sum over the window:

    a neuron             collects a window, then fires; it decays once per window
    a maximum            compares the sums of a window
    a product A B        adds up B's window, one integer per token, and A's spikes stream against it

Everything else must be additive: its output for a sum of inputs is the sum of its outputs.
"""

import re
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers import SSA, Additive, PerStep, fold
from spikeformers.neurons import ILIF, Neuron
from spikeformers.ops.ilif import ilif_burst
from spikeformers.types import Current, Membrane, Spikes

# They do nothing of their own, or nothing in eval mode, or average.
_ADDITIVE = (
    Additive,
    PerStep,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Identity,
    nn.Dropout,
    nn.AvgPool2d,
)


def expand(model: nn.Module, levels: int) -> "Expanded":
    """Return the binary network that equals a network of integer neurons, and print what it costs.

    The printed list names whatever has to see the sum over a window; all other operations work on
    the spikes of one sub-step.

    Args:
        model: A model whose neurons are all `ILIF` with these `levels`, in eval mode. It is not
            changed.
        levels: Sub-steps per step `D`, the largest integer that a neuron emits.

    Raises:
        InputError: If a neuron is of another kind or has other levels, or if a module is neither
            additive nor one of the above; it is named.

    Reference:
        Luo et al., ECCV 2024, arXiv:2407.20708, sec. 3.3; Yao et al., T-PAMI 2025,
        arXiv:2411.16061.
    """
    folded = fold(model)
    seen: dict[str, str] = {}
    sub_steps = _expanded(folded, "", levels, seen)
    expanded = Expanded(sub_steps, levels, seen)
    print(expanded.summary())
    return expanded


class Expanded(nn.Module):
    """A network of binary spikes; see `expand`.

    Attributes:
        sub_steps: The model that runs `levels` times per step.
        levels: Sub-steps per step.
        window_operators: Module path -> what it does with the sum over a window.
    """

    def __init__(self, sub_steps: nn.Module, levels: int, window_operators: dict[str, str]) -> None:
        super().__init__()
        self.sub_steps = sub_steps
        self.levels = levels
        self.window_operators = window_operators

    def forward(self, x: Tensor) -> Any:
        """Show every step in its first sub-step, and sum the outputs over each window.

        `[T, B, ...]` -> `[T, B, K]`, or a list of maps where the model returns one.
        """
        y = self.sub_steps(burst(x, self.levels))
        if isinstance(y, list):
            return [_by_window(scores, self.levels).sum(1) for scores in y]
        return _by_window(y, self.levels).sum(1)

    def summary(self) -> str:
        """Say which operators see the sum over a window of sub-steps, equal ones in one line."""
        counts = Counter(
            (re.sub(r"\d+", "*", path), reason) for path, reason in self.window_operators.items()
        )
        lines = [f"  {n:>4} x {path}: {reason}" for (path, reason), n in counts.items()]
        return "\n".join([f"What sees the sum of {self.levels} sub-steps:", *lines])


def burst(x: Tensor, levels: int) -> Tensor:
    """Put every step of `[T, ...]` into the first sub-step of its window, `[T*levels, ...]`."""
    empty = x.new_zeros(len(x), levels - 1, *x.shape[1:])
    return torch.cat([x[:, None], empty], 1).flatten(0, 1)


class Burst(Neuron):
    """An integer neuron that collects a window of sub-steps and answers with binary spikes.

    Its spikes of a window depend on the whole window: on a chip they leave one window later.

    Args:
        neuron: The integer neuron.
    """

    def __init__(self, neuron: ILIF) -> None:
        super().__init__()
        self.levels = neuron.levels
        self.decay = neuron.decay
        self.scale = neuron.scale
        self.rounding = neuron.rounding
        self.v_threshold = neuron.v_threshold

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Run the op `ilif_burst` over all windows."""
        spikes, v = ilif_burst(x, v0, self.levels, self.decay, self.rounding, self.v_threshold)
        return spikes if self.scale == 1 else self.scale * spikes, v


class OverWindow(nn.Module):
    """A maximum over positions, of the sums over a window; the result stands in its first sub-step.

    Args:
        module: Takes `[T, B, ...]`.
        levels: Sub-steps per step.
    """

    def __init__(self, module: nn.Module, levels: int) -> None:
        super().__init__()
        self.module = module
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """`[T*levels, B, ...]` -> `[T*levels, B, ...]`."""
        return burst(self.module(_by_window(x, self.levels).sum(1)), self.levels)


def streamed_product(q: Tensor, k: Tensor, v: Tensor, levels: int) -> Tensor:
    """`q (k^T v)` of window sums, with one operand binary in each product.

    The spikes of k stream against the values of the window, those of q against what came of it.

    Shape:
        q and k `[T*levels, B, h, d, N]`, v `[T*levels, B, h, d', N]` -> that of v.
    """
    values = _by_window(v, levels).sum(1, keepdim=True)  # [T, 1, B, h, d', N]
    memory = (values @ _by_window(k, levels).mT).sum(1, keepdim=True)
    return (memory @ _by_window(q, levels)).flatten(0, 1)


def _by_window(x: Tensor, levels: int) -> Tensor:
    """`[T*levels, ...]` -> `[T, levels, ...]`."""
    return x.reshape(-1, levels, *x.shape[1:])


def _expanded(module: nn.Module, path: str, levels: int, seen: dict[str, str]) -> nn.Module:
    """Return the form of a module that runs per sub-step, and note what sees a window's sum."""
    if isinstance(module, Neuron):
        if not isinstance(module, ILIF) or module.levels != levels:
            raise InputError(
                f"{path} is {type(module).__name__}({module.extra_repr()}): expected an integer "
                f"neuron with levels={levels}, as expand was told"
            )
        seen[path] = "a neuron, which collects currents"
        return Burst(module)
    if isinstance(module, PerStep) and isinstance(module.module, nn.MaxPool2d):
        seen[path] = "a maximum"
        return OverWindow(module, levels)
    for name, child in module.named_children():
        setattr(module, name, _expanded(child, f"{path}.{name}" if path else name, levels, seen))
    if isinstance(module, SSA):
        seen[path] = "two products, whose one operand is summed up and whose other one streams"
        module.product = partial(streamed_product, levels=levels)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        if module.bias is not None:
            module.bias.data /= levels
    elif not isinstance(module, _ADDITIVE):
        raise InputError(f"{path} ({type(module).__name__}) is not known to be additive")
    return module
