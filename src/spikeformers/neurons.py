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
from spikeformers.ops import dsr, ilif, lif
from spikeformers.ops.dsr import check_dsr, represent
from spikeformers.ops.ilif.op import check_ilif
from spikeformers.types import Current, Membrane, Spikes, State

__all__ = [
    "DSRIF",
    "DSRLIF",
    "IF",
    "ILIF",
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

    @property
    def remembers(self) -> bool:
        """Whether a step depends on the steps before it; else there is no state to carry."""
        return True

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Return the spikes of all steps and the final membrane; `v0=None` means rest."""
        raise NotImplementedError

    def forward(self, x: Current) -> Spikes:
        """Return the spikes `[T, ...]` of the currents `[T, ...]`, starting from rest."""
        if self.carried is None or not self.remembers:
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


def is_power_of_two(number: float) -> bool:
    """Whether multiplying by a number rounds nothing."""
    return number > 0 and math.frexp(number)[0] == 0.5


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
        if type(self) not in (LIF, IF) or self.v_reset not in (0.0, None):
            return None
        if not is_power_of_two(scale):
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


class ILIF(Neuron):
    """Integer LIF neuron: `u = decay v + x`, emits `scale round(clip(u / v_threshold, 0, levels))`.

    What was not emitted stays as the membrane `v`. An integer stands for that many binary spikes of
    a step; with `decay=0` and `scale=1/levels` this is the spike firing approximation.

    Args:
        levels: Largest integer `D`.
        decay: Share of the remainder that survives a step, in [0, 1]; 0 remembers nothing.
        scale: Constant factor of the output. The membrane loses the integer, not its multiple.
        rounding: Where exact halves go: "half_even", or "half_up" as in the large models of V3.
        v_threshold: Membrane per level.

    Shape:
        `[T, ...]` -> `[T, ...]`.

    Reference:
        Luo et al., ECCV 2024, arXiv:2407.20708; Yao et al., T-PAMI 2025, arXiv:2411.16061.
    """

    def __init__(
        self,
        levels: int = 4,
        decay: float = 0.25,
        scale: float = 1.0,
        rounding: str = "half_even",
        v_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        check_ilif(levels, decay, rounding, v_threshold)
        self.levels = levels
        self.decay = decay
        self.scale = scale
        self.rounding = rounding
        self.v_threshold = v_threshold

    @property
    def remembers(self) -> bool:
        """Only a remainder that survives a step is a memory."""
        return self.decay > 0

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Run the op `ilif` over all steps."""
        integers, v = ilif(
            x,
            v0,
            levels=self.levels,
            decay=self.decay,
            rounding=self.rounding,
            v_threshold=self.v_threshold,
        )
        return integers if self.scale == 1 else self.scale * integers, v

    def absorb(self, scale: float) -> "ILIF | None":
        """Divide the threshold by `scale`."""
        if not is_power_of_two(scale):
            return None
        twin = copy.deepcopy(self)
        twin.v_threshold = self.v_threshold / scale
        return twin

    def extra_repr(self) -> str:
        """Show the hyperparameters that neuron tables of the papers show."""
        return (
            f"levels={self.levels}, decay={self.decay}, scale={self.scale}, "
            f"v_threshold={self.v_threshold}"
        )


class DSRIF(Neuron):
    """IF neuron that learns from what its spikes represent, and its threshold with it.

    It integrates and fires step by step, `h = v + x`, a spike of height `v_threshold` at
    `h >= alpha v_threshold`, soft reset. The gradient is that of the clipped mean over time, the
    same for every step: training keeps nothing per step.

    Args:
        v_threshold: Initial threshold.
        alpha: Share of it at which the neuron fires.
        lower_bound: What the threshold cannot fall below: training mode raises it in place.
        threshold_grad: Factor of its gradient.

    Shape:
        `[T, ...]` -> `[T, ...]`.

    Reference:
        Meng et al., CVPR 2022, arXiv:2205.00459.
    """

    tau: float | None = None
    dt: float = 1.0

    def __init__(
        self,
        v_threshold: float = 6.0,
        alpha: float = 0.5,
        lower_bound: float = 0.01,
        threshold_grad: float = 1.0,
    ) -> None:
        super().__init__()
        check_dsr(alpha, self.tau, self.dt)
        if lower_bound <= 0 or v_threshold < lower_bound:
            raise InputError(
                f"v_threshold={v_threshold} and lower_bound={lower_bound}: expected a positive "
                "bound and a threshold that is no smaller"
            )
        self.v_threshold = nn.Parameter(torch.tensor(float(v_threshold)))
        self.alpha = alpha
        self.lower_bound = lower_bound
        self.threshold_grad = threshold_grad

    @property
    def threshold(self) -> Tensor:
        """The threshold, bounded from below."""
        if not self.training:
            return self.v_threshold.clamp(min=self.lower_bound)
        with torch.no_grad():
            self.v_threshold.clamp_(min=self.lower_bound)
        return self.v_threshold

    def fire(self, x: Current, v0: Membrane | None = None) -> tuple[Spikes, Membrane]:
        """Run the op `dsr` over all steps."""
        return dsr(
            x,
            v0,
            v_threshold=self.threshold,
            alpha=self.alpha,
            tau=self.tau,
            dt=self.dt,
            threshold_grad=self.threshold_grad,
        )

    def represent(self, y: Tensor) -> Tensor:
        """Return what outputs over time stand for, `[T, ...]` -> `[...]`: their (weighted) mean."""
        return represent(y, self.tau, self.dt)

    def extra_repr(self) -> str:
        """Show the hyperparameters that neuron tables of the papers show."""
        return f"tau={self.tau}, dt={self.dt}, alpha={self.alpha}"


class DSRLIF(DSRIF):
    """LIF neuron that learns from what its spikes represent: later ones count more.

    `h = b v + (1 - b) x` with `b = exp(-dt / tau)`; spikes have height `v_threshold / dt`. Further
    arguments as in `DSRIF`.

    Args:
        tau: Membrane time constant, in the unit of `dt`.
        dt: Length of a step.
        v_threshold: Initial threshold.
        alpha: Share of it at which the neuron fires.
        lower_bound: What the threshold cannot fall below.
        options: Further arguments of `DSRIF`.

    Shape:
        `[T, ...]` -> `[T, ...]`.

    Reference:
        Meng et al., CVPR 2022, arXiv:2205.00459.
    """

    def __init__(
        self,
        tau: float = 1.0,
        dt: float = 0.05,
        v_threshold: float = 0.3,
        alpha: float = 0.3,
        lower_bound: float = 5e-4,
        **options: Any,
    ) -> None:
        self.tau, self.dt = tau, dt
        super().__init__(v_threshold, alpha, lower_bound, **options)


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
