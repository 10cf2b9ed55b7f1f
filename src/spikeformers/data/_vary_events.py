"""Random changes of event frames, one at a time: of the geometry, for there are no colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spikeformers.data._torchvision import _torchvision

_STRONGEST = 30
_CHANGES = ("nothing", "shear", "shift_x", "shift_y", "rotate", "cutout")


def vary_events(operations: int, magnitude: int) -> Callable[[Tensor], Tensor]:
    """Return what changes a recording by a few operations, each drawn from six with equal chance.

    They are: nothing; shear along x by up to 0.3; shift along x or y by up to 5 of 128 pixels;
    rotate by up to 30 degrees; and cut out a square of up to 11 % of the area. How far, and to
    which side, is drawn uniformly. All frames are changed alike; what comes in from the border has
    no events.

    Args:
        operations: How many are applied, one after the other.
        magnitude: Which part of the given ranges is used, in units of 1/30.

    References:
        Li et al., "Neuromorphic Data Augmentation for Training Spiking Neural Networks", ECCV 2022,
        arXiv:2203.06145; the list and its ranges are those of Spikformer's event recipes.
    """
    strength = magnitude / _STRONGEST

    def change(frames: Tensor) -> Tensor:
        for _ in range(operations):
            name = _CHANGES[int(torch.randint(len(_CHANGES), ()))]
            amount = strength * (2 * torch.rand(()).item() - 1)
            frames = _changed(frames, name, amount)
        return frames

    return change


def _changed(frames: Tensor, name: str, amount: float) -> Tensor:
    """Apply one operation by `amount`, from -1 to 1 of its range."""
    if name == "nothing":
        return frames
    if name == "cutout":
        return _cut_out(frames, 0.11 * abs(amount))
    side = frames.shape[-1]
    moved: Tensor = _torchvision().transforms.v2.functional.affine_image(
        frames,
        angle=30 * amount if name == "rotate" else 0.0,
        translate=[
            round(5 / 128 * side * amount) if name == axis else 0 for axis in ("shift_x", "shift_y")
        ],
        scale=1.0,
        shear=[math.degrees(0.3 * amount) if name == "shear" else 0.0, 0.0],
    )
    return moved


def _cut_out(frames: Tensor, share: float) -> Tensor:
    """Remove the events in a square of this share of the area, at a random place within."""
    height, width = frames.shape[-2:]
    side = min(round(math.sqrt(share * height * width)), height, width)
    top = int(torch.randint(height - side + 1, ()))
    left = int(torch.randint(width - side + 1, ()))
    cut = frames.clone()
    cut[..., top : top + side, left : left + side] = 0
    return cut
