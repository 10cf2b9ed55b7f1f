"""From images and frames to currents over time: `[T, B, C, H, W]`."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeformers.errors import InputError


def direct(images: Tensor, timesteps: int) -> Tensor:
    """Show the same image at every time step.

    `y[t] = images` for each `t`; the first neurons of the model turn the values into spikes. The
    result is a view, so `T` costs no memory.

    Args:
        images: Normalised images, finite and of floating-point type.
        timesteps: Number of time steps `T`, at least 1.

    Shape:
        `[B, C, H, W]` -> `[T, B, C, H, W]`.

    Raises:
        InputError: If `images` or `timesteps` are not as described. Values are looked at on
            the CPU and in eager mode only.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        kind = type(timesteps).__name__
        raise InputError(f"timesteps is {timesteps!r} ({kind}), expected an int: write 4, not 4.0")
    if timesteps < 1:
        raise InputError(f"timesteps is {timesteps}, expected at least 1: choose, for example, 4")
    if not isinstance(images, Tensor):
        raise InputError(
            f"images is of type {type(images).__name__}, expected a torch.Tensor [B, C, H, W]: "
            "convert it with torch.as_tensor(images)"
        )
    if images.ndim != 4:
        raise InputError(
            f"images has shape {list(images.shape)}, expected [B, C, H, W]: add a batch axis with "
            "images[None] to a single image; a [T, B, C, H, W] tensor is encoded already"
        )
    if not images.is_floating_point():
        raise InputError(
            f"images has dtype {images.dtype}, expected floating point: scale to 0..1 and "
            "normalise first (spikeformers.data.Preprocess does both)"
        )
    # On an accelerator this test would make the host wait for the device at every step.
    looks = images.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not bool(images.isfinite().all()):
        raise InputError(
            "images contains NaN or infinity, expected finite values: look for a zero in the std "
            "of the normalisation or for damaged images"
        )
    return images.expand(timesteps, *images.shape)


def over_time(batch: Tensor, timesteps: int) -> Tensor:
    """Put time first: frames come one after the other, an image is shown at every step.

    Args:
        batch: Normalised images or frames.
        timesteps: Number of time steps `T`; frames have to be as many.

    Shape:
        Images `[B, C, H, W]` or frames `[B, T, C, H, W]` -> `[T, B, C, H, W]`.

    Raises:
        InputError: If there are not `T` frames, or the images are not as in `direct`.
    """
    if batch.ndim != 5:
        return direct(batch, timesteps)
    if batch.shape[1] != timesteps:
        raise InputError(
            f"batch has {batch.shape[1]} frames ({list(batch.shape)}), expected {timesteps} in "
            "[B, T, C, H, W]: open the data set with as many timesteps as the model gets"
        )
    return batch.transpose(0, 1)
