"""Masked autoencoding: hide part of an image, guess its pixels, learn without labels."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.data import over_time
from spikeformers.errors import InputError
from spikeformers.tasks.objectives import wide


class Autoencoder(Protocol):
    """What the task needs of a model."""

    def __call__(self, x: Tensor, visible: Tensor) -> Tensor:
        """Return the pixels of all tokens `[T, B, N, C*p*p]`, given the visible ones `[B, M]`."""
        ...

    def readout(self, y: Tensor) -> Tensor:
        """Return pixels `[B, N, C*p*p]` of those of every step."""
        ...


class MaskedAutoencoding:
    """The task of guessing the hidden tokens of an image.

    In training every image gets a new random mask; on held-out images all have the same, so that
    their error can be compared over epochs.

    Args:
        timesteps: How often an image is shown, T.
        mask_ratio: Share of the tokens that is hidden, in (0, 1).
        patch: Side p of a token in pixels.

    Reference:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377.
    """

    def __init__(self, timesteps: int, mask_ratio: float, patch: int) -> None:
        self.timesteps = timesteps
        self.mask_ratio = mask_ratio
        self.patch = patch

    def step(self, model: Autoencoder, images: Tensor, _targets: Tensor) -> dict[str, Tensor]:
        """Return the loss to optimise.

        Args:
            model: In training mode.
            images: `[B, C, H, W]`.
        """
        order = torch.rand(len(images), self._tokens(images), device=images.device).argsort(1)
        return {"loss": self._errors(model, images, order).mean()}

    @torch.no_grad()
    def predict(self, model: Autoencoder, images: Tensor) -> Tensor:
        """Return the error `[B]` of each image.

        Args:
            model: In eval mode.
            images: `[B, C, H, W]`.
        """
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(self._tokens(images), generator=generator).to(images.device)
        return self._errors(model, images, order.expand(len(images), -1))

    def metric(self, num_classes: int) -> "ReconstructionError":  # noqa: ARG002
        """Return an empty counter of errors."""
        return ReconstructionError()

    def _tokens(self, images: Tensor) -> int:
        if images.ndim != 4:
            raise InputError(
                f"images have shape {list(images.shape)}: masked autoencoding takes still images "
                "[B, C, H, W]"
            )
        tokens = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        if tokens < 2:
            raise InputError(
                f"images of {images.shape[2]}x{images.shape[3]} have {tokens} tokens of "
                f"{self.patch}x{self.patch} pixels: one to see and one to guess need larger images"
            )
        return tokens

    def _errors(self, model: Autoencoder, images: Tensor, order: Tensor) -> Tensor:
        """Return the mean error `[B]` over hidden tokens: those after the first ones in `order`."""
        tokens = order.shape[1]
        seen = min(max(round(tokens * (1 - self.mask_ratio)), 1), tokens - 1)
        visible, hidden = order[:, :seen].sort(1).values, order[:, seen:]
        guessed = wide(model.readout(model(over_time(images, self.timesteps), visible)))
        errors = (guessed - normalised_patches(images, self.patch)).square().mean(2)
        return errors.gather(1, hidden).mean(1)


def normalised_patches(images: Tensor, patch: int) -> Tensor:
    """Return the pixels of each token with mean 0 and variance 1: what is to be guessed.

    Shape:
        `[B, C, H, W]` -> `[B, N, C*p*p]`.
    """
    patches = wide(F.pixel_unshuffle(images, patch).flatten(2).mT)
    centred = patches - patches.mean(2, keepdim=True)
    return centred / (patches.var(2, keepdim=True) + 1e-6).sqrt()


class ReconstructionError:
    """Averages errors over batches.

    Attributes:
        counts: All that was counted, by name; sums of it over processes count for all of them.
    """

    def __init__(self) -> None:
        self.counts = {
            "loss": torch.zeros((), dtype=torch.float64),
            "images": torch.zeros((), dtype=torch.long),
        }

    def update(self, errors: Tensor, _labels: Tensor) -> None:
        """Count one batch of errors `[B]`."""
        self.counts["loss"] += errors.cpu().sum(dtype=torch.float64)
        self.counts["images"] += len(errors)

    def compute(self) -> dict[str, Any]:
        """Return the mean error and the number of images."""
        images = int(self.counts["images"])
        return {"loss": self.counts["loss"].item() / images, "images": images}
