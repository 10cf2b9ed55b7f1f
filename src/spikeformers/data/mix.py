"""Mixing the images or frames of a batch, and their labels with them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikeformers.data._torchvision import _torchvision
from spikeformers.errors import InputError


class Mix:
    """Mixup and cutmix: each image is blended with its neighbour, or gets a rectangle of it.

    Where both are on, each batch takes one of the two with equal chance. Under several processes
    each mixes its own part of the batch.

    Args:
        mixup: Alpha of the Beta distribution that the share is drawn from; 0 is off.
        cutmix: The same for the area of the rectangle; 0 is off.
        num_classes: Classes K.
        chance: Share of the batches that are mixed; the others stay as they are.

    Raises:
        InputError: If a number is negative or not finite, or the chance no share.
        MissingExtraError: If mixing is switched on and torchvision is not installed.

    References:
        Zhang et al., "mixup", ICLR 2018, arXiv:1710.09412;
        Yun et al., "CutMix", ICCV 2019, arXiv:1905.04899.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, chance: float = 1.0) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise InputError(f"{name} is {alpha}, expected 0 (off) or a positive number")
        if not 0 <= chance <= 1:
            raise InputError(f"chance is {chance}, expected a share from 0 to 1")
        self.chance = chance
        self.ways: list[Any] = []
        if mixup or cutmix:
            v2 = _torchvision().transforms.v2
            self.ways += [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
            self.ways += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch; the randomness comes from torch's global CPU generator.

        Shape:
            `[B, C, H, W]`, or frames `[B, T, C, H, W]`, and classes `[B]` -> the same and
            probabilities `[B, K]`; without mixing both stay as they are.
        """
        if not self.ways or (self.chance < 1 and torch.rand(()).item() >= self.chance):
            return images, labels
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        # The frames of a recording are mixed alike, as if they were channels.
        mixed, targets = way(images.flatten(1, -3), labels)
        return mixed.view_as(images), targets
