"""Spiking neurons: thin modules around functions.

A neuron module holds its hyperparameters (and, where the paper learns them, parameters), never a
membrane. Called, it starts at rest, sees all time steps and forgets everything; state that outlives
a call is handed in and out by `streaming.advance`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.ops import lif
from spikeformers.types import Current, Membrane, Spikes, State

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "AcrossBatch",
    "Carried",
    "LearnedThresholdLIF",
    "Neuron",
    "NeuronFactory",
    "Stateful",
]


@dataclass
class Carried:
    """The tensors of one module before and after the current chunk of time."""

    before: State
    after: State = field(default_factory=dict)


class Stateful(nn.Module):
    """A module that can carry tensors from one chunk of time to the next.

    `carried` is set by `streaming.bind` for the length of one call and is `None` otherwise.
    """

    carried: Carried | None = None


class Neuron(Stateful):
    """A layer of spiking neurons. Subclasses implement `fire`."""

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Return the spikes of all steps and the final membrane; `v0=None` means rest."""
        raise NotImplementedError

    def forward(self, x: Current) -> Spikes:
        """Return the spikes `[T, ...]` of the currents `[T, ...]`, starting from rest."""
        if self.carried is None:
            return self.fire(x)[0]
        if "membrane" in self.carried.after:
            raise InputError(f"{self} ran twice in one forward pass: its state would be mixed up")
        spikes, v = self.fire(x, self.carried.before.get("membrane"))
        self.carried.after["membrane"] = v
        return spikes

    def absorb(self, scale: float) -> "Neuron | None":
        """Return a neuron that fires on `x` as this one fires on `scale * x`.

        `None` if there is no exact one. Training is not the same: the surrogate sees another scale.
        """
        del scale
        return None


NeuronFactory = Callable[..., Neuron]
"""Makes a neuron: a class, or `functools.partial(LIF, tau=4.0)`."""


class LIF(Neuron):
    """Leaky integrate-and-fire neuron: `h = v + (x - v) / tau`, spike at `h >= v_threshold`.

    Args:
        tau: Membrane time constant in steps, >= 1.
        v_threshold: Firing threshold.
        v_reset: Potential after a spike; `None` subtracts the threshold (soft reset).
        decay_input: Whether the input is divided by `tau` as well.
        detach_reset: Whether the gradient ignores the path through the reset.
        surrogate: Name of the surrogate derivative.
        alpha: Its sharpness; `None` is the customary value.
        strict: Fire at `h > v_threshold` instead of `>=`.

    Shape:
        `[T, ...]` -> `[T, ...]`.
    """

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        detach_reset: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if tau < 1:
            raise InputError(f"tau={tau}: expected a time constant >= 1 (in steps)")
        self.tau = tau
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.decay_input = decay_input
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self.alpha = alpha
        self.strict = strict

    @property
    def decay(self) -> float | Tensor:
        """Share of the membrane that survives a step."""
        return 1 - 1 / self.tau

    @property
    def threshold(self) -> float | Tensor:
        """Firing threshold as the op takes it."""
        return self.v_threshold

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Run the op `lif` over all steps."""
        return lif(
            x,
            v0,
            decay=self.decay,
            v_threshold=self.threshold,
            v_reset=self.v_reset,
            decay_input=self.decay_input,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            alpha=self.alpha,
            strict=self.strict,
        )

    def absorb(self, scale: float) -> "LIF | None":
        """Divide the threshold by `scale`: exact where resets go to 0 or by subtraction."""
        power_of_two = scale > 0 and math.frexp(scale)[0] == 0.5
        if type(self) not in (LIF, IF) or self.v_reset not in (0.0, None) or not power_of_two:
            return None
        twin = copy.deepcopy(self)
        twin.v_threshold = self.v_threshold / scale
        return twin

    def extra_repr(self) -> str:
        """Show the hyperparameters that neuron tables of the papers show."""
        return f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}"


class IF(LIF):
    """Integrate-and-fire neuron: `h = v + x`, no leak. Arguments as in `LIF`, without `tau`."""

    def __init__(self, **options: Any) -> None:
        if "tau" in options:
            raise InputError(f"tau={options['tau']}: an IF neuron does not leak; use LIF")
        super().__init__(decay_input=False, **options)

    @property
    def decay(self) -> float:
        """Nothing leaks."""
        return 1.0


class PLIF(LIF):
    """LIF with a learned time constant: `1/tau = sigmoid(w)`, one `w` per layer.

    Arguments as in `LIF`; `tau` is the initial value, `w = -ln(tau - 1)`.

    Reference:
        Fang et al., "Incorporating Learnable Membrane Time Constant", ICCV 2021,
        arXiv:2007.05785, eq. 7.
    """

    def __init__(self, tau: float = 2.0, **options: Any) -> None:
        super().__init__(tau, **options)
        if tau <= 1:
            raise InputError(f"tau={tau}: a learned time constant must start above 1")
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def decay(self) -> Tensor:
        """`1 - sigmoid(w)`."""
        return 1 - self.w.sigmoid()


class LearnedThresholdLIF(LIF):
    """LIF with a learned threshold, kept positive as `2 ** w`, one `w` per layer.

    Arguments as in `LIF`; `v_threshold` is the initial value. SDSA-4 fires with it.
    """

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, **options: Any) -> None:
        super().__init__(tau, v_threshold, **options)
        if v_threshold <= 0:
            raise InputError(f"v_threshold={v_threshold}: a learned threshold must be positive")
        self.w = nn.Parameter(torch.tensor(math.log2(v_threshold)))

    @property
    def threshold(self) -> Tensor:
        """`2 ** w`."""
        return self.w.exp2()


class AcrossBatch(Neuron):
    """Let a neuron scan time and batch as one axis, as some published models do by mistake.

    The samples of a batch then influence each other; at `B = 1` nothing changes. It exists so that
    weights trained that way can be loaded and measured. It cannot stream.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Run over `[T*B, ...]`."""
        if v0 is not None:
            raise InputError("AcrossBatch has no state that could be carried on")
        spikes, v = self.neuron.fire(x.flatten(0, 1))
        return spikes.unflatten(0, x.shape[:2]), v.expand(x.shape[1:])
