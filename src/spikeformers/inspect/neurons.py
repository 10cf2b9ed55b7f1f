"""Neurons one by one and in numbers: rates of whole layers, spikes and potentials of a few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeformers.analysis.firing import Potentials
from spikeformers.inspect.choose import pick

RASTER_NEURONS = 64
TRACED_NEURONS = 6


class Tally:
    """Counts the spikes of one layer over any number of batches.

    A neuron is one place in `[T, B, *place]`, judged over all samples.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.spikes: Tensor | float = 0.0
        self.ever: Tensor | bool = False
        self.always: Tensor | bool = True

    def add(self, spikes: Tensor) -> None:
        """Count the spikes `[T, B, *place]` of a batch."""
        fired = _flat(spikes) != 0
        self.samples += spikes.shape[1]
        self.spikes = self.spikes + spikes.flatten(1).sum(1, dtype=torch.float64)
        self.ever = fired.any(1).any(0) | self.ever
        self.always = fired.all(1).all(0) & self.always

    def facts(self, name: str) -> dict[str, Any]:
        """Return the layer's line of `inspect.json`."""
        assert isinstance(self.spikes, Tensor)
        assert isinstance(self.ever, Tensor) and isinstance(self.always, Tensor)
        per_step = self.spikes / (self.samples * len(self.ever))
        return {
            "name": name,
            "neurons": len(self.ever),
            "rate": per_step.mean().item(),
            "rate_per_step": per_step.tolist(),
            "never_fired": 1 - self.ever.float().mean().item(),
            "always_fired": self.always.float().mean().item(),
        }


def raster(spikes: Tensor) -> tuple[list[int], np.ndarray]:
    """Evenly spread neurons of the first sample, and when they fired, `[neurons, T]`."""
    fired = _flat(spikes)[:, 0] != 0
    neurons = pick(list(range(fired.shape[1])), RASTER_NEURONS)
    return neurons, fired[:, neurons].T.cpu().numpy()


def traces(spikes: Tensor, found: Potentials) -> tuple[list[int], dict[str, np.ndarray]]:
    """Some neurons of the first sample and what they did.

    Those that fire at some steps and rest at others come first, then those that always fire.

    Returns:
        Flat indices, and the arrays `spikes`, `after` and, where known, `before` `[neurons, T]`
        and `threshold` `[neurons]`.
    """
    fired = _flat(spikes)[:, 0] != 0
    count = fired.sum(0)
    neurons: list[int] = []
    for group in ((count > 0) & (count < len(fired)), count == len(fired), count == 0):
        neurons += pick(group.nonzero()[:, 0].tolist(), TRACED_NEURONS - len(neurons))

    def of_them(values: Tensor) -> np.ndarray:
        return values[:, neurons].T.float().cpu().numpy()

    arrays = {"spikes": fired[:, neurons].T.cpu().numpy()}
    arrays["after"] = of_them(_flat(found.after)[:, 0])
    if found.before is not None and found.threshold is not None:
        arrays["before"] = of_them(_flat(found.before)[:, 0])
        thresholds = found.threshold.expand(found.before.shape[1:])[:1].flatten(1)
        arrays["threshold"] = of_them(thresholds)[:, 0]
    return neurons, arrays


def _flat(x: Tensor) -> Tensor:
    """`[T, B, *place]` as `[T, B, neurons]`."""
    return x.reshape(*x.shape[:2], -1)
