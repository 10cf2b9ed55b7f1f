"""Mixing the images of a batch, and their labels with them."""

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

    Raises:
        InputError: If a number is negative or not finite.
        MissingExtraError: If mixing is switched on and torchvision is not installed.

    References:
        Zhang et al., "mixup", ICLR 2018, arXiv:1710.09412;
        Yun et al., "CutMix", ICCV 2019, arXiv:1905.04899.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise InputError(f"{name} is {alpha}, expected 0 (off) or a positive number")
        self.ways: list[Any] = []
        if mixup or cutmix:
            v2 = _torchvision().transforms.v2
            self.ways += [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
            self.ways += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch; the randomness comes from torch's global CPU generator.

        Shape:
            `[B, C, H, W]` and classes `[B]` -> the same and probabilities `[B, K]`; without mixing
            both stay as they are.
        """
        if not self.ways:
            return images, labels
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        mixed, targets = way(images, labels)
        return mixed, targets
