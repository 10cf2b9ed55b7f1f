"""From images or counts of events to normalised floats: as they are, or varied for training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.data._events import picture
from spikeformers.data._timm import import_timm
from spikeformers.data._torchvision import _torchvision
from spikeformers.data._vary_events import vary_events
from spikeformers.errors import InputError


class Preprocess:
    """The evaluation transform: resize, scale to 0..1, normalise.

    `y = (resize(x) / 255 - mean) / std`. The short side is resized to `image_size / crop`
    (bilinear, with antialiasing), then the centre is cut out. It works on one image and on a batch.

    Counts of events are not scaled: `y = (resize(x) - mean) / std`, with mean counts per pixel.

    Args:
        image_size: Side `S` of the square result, in pixels.
        mean: Mean of each channel, for values in 0..1 or counts.
        std: Standard deviation of each channel, for values in 0..1 or counts.
        channels: Number of channels `C`; with 2 they are counts of darker and brighter events.
        crop: Share of the resized short side that is kept, in (0, 1]; ImageNet's habit is 0.875.

    Shape:
        uint8 `[C, H, W]` -> float32 `[C, S, S]`, or with a batch axis `[B, ...]` in front of both;
        float32 `[T, 2, H, W]` -> float32 `[T, 2, S, S]` for frames of events.

    Raises:
        InputError: If an argument does not fit `channels`, or an image is not as described.
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        crop: float = 1.0,
    ) -> None:
        if image_size < 1:
            raise InputError(f"image_size is {image_size}, expected at least 1 pixel")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise InputError(
                    f"{name} has {len(values)} values, expected one for each of the {channels} "
                    "channels"
                )
        if min(std) <= 0:
            raise InputError(f"std is {list(std)}, expected positive values: use 1.0 for no change")
        if not 0 < crop <= 1:
            raise InputError(f"crop is {crop}, expected a share in (0, 1]")
        self.image_size = image_size
        self.short_side = round(image_size / crop)
        self.channels = channels
        self.of_events = channels == 2
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Transform one image or a batch."""
        return self.normalise(self.resize(images))

    def resize(self, images: Tensor) -> Tensor:
        """Return float32 images of the final size, with values in 0..1 or counts."""
        pixels = self.scale(images)
        size = self.image_size
        height, width = images.shape[-2:]
        side, short = self.short_side, min(height, width)
        resized = (side * height // short, side * width // short)
        if resized != (height, width):
            batch = pixels if pixels.ndim == 4 else pixels[None]
            batch = F.interpolate(batch, resized, mode="bilinear", antialias=True)
            pixels = batch if pixels.ndim == 4 else batch[0]
        if resized == (size, size):
            return pixels
        top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
        return pixels[..., top : top + size, left : left + size]

    def scale(self, images: Tensor) -> Tensor:
        """Return float32 images with values in 0..1; counts stay as they are.

        Raises:
            InputError: If images are not uint8, or frames not float32, with the right channels.
        """
        if self.of_events:
            if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 2:
                raise InputError(
                    f"frames is {images.dtype} {list(images.shape)}, expected float32 counts of "
                    "events [T, 2, H, W]: open the recording with load_dataset or read_recording"
                )
            return images
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise InputError(
                f"images is {images.dtype} {list(images.shape)}, expected uint8 [C, H, W] or "
                "[B, C, H, W]: pass the images as read, values 0..255"
            )
        if images.shape[-3] != self.channels:
            raise InputError(
                f"images has {images.shape[-3]} channels, expected {self.channels}: read the file "
                f"with read_image(path, channels={self.channels})"
            )
        return images / 255

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation."""
        return (images - self.mean) / self.std

    def picture(self, images: Tensor) -> Tensor:
        """Return resized images, or frames as pictures, for a person to look at.

        Shape:
            `[..., C, S, S]` -> uint8 `[..., C, S, S]`; `[..., T, 2, S, S]` -> uint8
            `[..., 3, S, S]`.
        """
        return picture(images) if self.of_events else (255 * images).round().to(torch.uint8)


Change = Callable[[Tensor], Tensor]

# timm itself passes over most of what it does not know.
_TIMM_POLICY = re.compile(
    r"rand(-(m\d+|n\d|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*"
    r"|original(-mstd\d+(\.\d+)?)?"
)


class Augment:
    """The training transform: resize, random changes, normalise. Each change is off by default.

    Args:
        preprocess: The evaluation transform, whose resize and normalisation are used.
        resized_crop: Instead of the resize: cut out a random rectangle of at least this share of
            the area, with sides 3:4 to 4:3, and resize it to the square.
        flip: Mirror left and right, for half of the images.
        crop_padding: Pad by so many black pixels and cut out a square of the final size.
        rotate: Rotate by up to so many degrees to either side.
        translate: Shift by up to this fraction of the size, in both directions.
        scale: Enlarge or shrink by up to this fraction.
        rand_augment_ops: Number of RandAugment operations per image; of `vary_events` for events.
        rand_augment_magnitude: Their strength, 0 to 30.
        timm_augment: Instead of those: a policy of timm's RandAugment, for example
            "rand-m9-mstd0.5-inc1"; or "original", its AutoAugment.
        random_erasing: Chance of filling a rectangle of 2 to 33 % of the area with noise; where
            events are counted, with none.

    Shape:
        uint8 `[C, H, W]` -> float32 `[C, S, S]`; float32 `[T, 2, H, W]` -> float32 `[T, 2, S, S]`
        for events, all frames changed alike.

    Raises:
        InputError: If a number is out of its range.
        MissingExtraError: If a change is switched on and torchvision or timm is not installed.

    References:
        AutoAugment: Cubuk et al., CVPR 2019, arXiv:1805.09501;
        RandAugment: Cubuk et al., NeurIPS 2020, arXiv:1909.13719;
        random erasing: Zhong et al., AAAI 2020, arXiv:1708.04896.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        resized_crop: float | None = None,
        flip: bool = False,
        crop_padding: int = 0,
        rotate: float = 0.0,
        translate: float = 0.0,
        scale: float = 0.0,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: int = 9,
        timm_augment: str | None = None,
        random_erasing: float = 0.0,
    ) -> None:
        _check_range("resized_crop", 1 if resized_crop is None else resized_crop, 1e-6, 1)
        _check_range("crop_padding", crop_padding, 0, preprocess.image_size)
        _check_range("rotate", rotate, 0, 180)
        _check_range("translate", translate, 0, 1)
        _check_range("scale", scale, 0, 0.99)
        _check_range("rand_augment_ops", rand_augment_ops, 0, 100)
        _check_range("rand_augment_magnitude", rand_augment_magnitude, 0, 30)
        _check_range("random_erasing", random_erasing, 0, 1)
        if rand_augment_ops and timm_augment:
            raise InputError(
                f"rand_augment_ops={rand_augment_ops} and timm_augment={timm_augment!r} exclude "
                "each other: set rand_augment_ops to 0, or timm_augment to None"
            )
        self.preprocess = preprocess
        self.resized_crop = resized_crop
        self.flip = flip
        self.crop_padding = crop_padding
        self.rotate = rotate
        self.translate = translate
        self.scale = scale
        self.rand_augment_ops = rand_augment_ops
        self.rand_augment_magnitude = rand_augment_magnitude
        self.timm_augment = timm_augment
        self.random_erasing = random_erasing
        self._build()

    def __call__(self, image: Tensor) -> Tensor:
        """Transform one image.

        The randomness comes from torch's global generator, with timm from Python's and numpy's too.
        """
        pixels = self._resize(image)
        for change in self._changes:
            pixels = change(pixels)
        pixels = self.preprocess.normalise(pixels)
        return pixels if self._erase is None else self._erase(pixels)

    def _build(self) -> None:
        """Make torchvision's objects, which do not survive the way into a worker process."""
        self._resize: Change = self.preprocess.resize
        if self.resized_crop is not None:
            self._resize = _random_resized_crop(self.preprocess, self.resized_crop)
        changes: list[Change] = []
        if self.crop_padding:
            size = self.preprocess.image_size
            changes.append(_v2().RandomCrop(size, padding=self.crop_padding))
        if self.flip:
            changes.append(_v2().RandomHorizontalFlip())
        if self.rotate or self.translate or self.scale:
            changes.append(_random_affine(self.rotate, self.translate, self.scale))
        if self.rand_augment_ops and self.preprocess.of_events:
            changes.append(vary_events(self.rand_augment_ops, self.rand_augment_magnitude))
        elif self.rand_augment_ops:
            rand_augment = _v2().RandAugment(
                self.rand_augment_ops,
                self.rand_augment_magnitude,
                interpolation=_v2().InterpolationMode.BILINEAR,
            )
            changes.append(rand_augment)
        if self.timm_augment is not None:
            changes.append(_timm_augment(self.timm_augment, self.preprocess))
        self._erase: Change | None = None
        if self.random_erasing and self.preprocess.of_events:
            changes.append(_v2().RandomErasing(self.random_erasing))
        elif self.random_erasing:
            self._erase = _v2().RandomErasing(self.random_erasing, value="random")
        self._changes = changes

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what `_build` makes: a fresh worker process makes it anew."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._build()


def _v2() -> Any:
    return _torchvision().transforms.v2


def _random_affine(rotate: float, translate: float, scale: float) -> Change:
    v2 = _v2()
    affine = v2.RandomAffine(rotate, translate=(translate, translate), scale=(1 - scale, 1 + scale))
    bilinear = v2.InterpolationMode.BILINEAR

    def change(image: Tensor) -> Tensor:
        # Calling `affine` would first search the input for images and look up the kernel, which
        # takes as long as the kernel itself on a small image.
        params = affine.make_params([image])
        changed: Tensor = v2.functional.affine_image(image, **params, interpolation=bilinear)
        return changed

    return change


def _random_resized_crop(preprocess: Preprocess, least: float) -> Change:
    crop = _v2().RandomResizedCrop(preprocess.image_size, scale=(least, 1), antialias=True)

    def change(image: Tensor) -> Tensor:
        # Cutting first is several times faster than scaling a large image first.
        cut: Tensor = crop(image)
        return preprocess.scale(cut)

    return change


def _timm_augment(policy: str, preprocess: Preprocess) -> Change:
    if not _TIMM_POLICY.fullmatch(policy):
        raise InputError(
            f"timm_augment={policy!r} is no policy of timm's RandAugment, expected for example "
            "'rand-m9-mstd0.5-inc1', or 'original' for its AutoAugment"
        )
    if preprocess.channels != 3:
        raise InputError(
            f"timm_augment={policy!r} works on RGB, but the images have {preprocess.channels} "
            f"channel{'s' * (preprocess.channels > 1)}: use rand_augment_ops"
        )
    fill = tuple(round(255 * mean) for mean in preprocess.mean.flatten().tolist())
    options = {"img_mean": fill, "translate_const": int(0.45 * preprocess.image_size)}
    known = import_timm().data.auto_augment
    automatic = policy.startswith("original")
    make = known.auto_augment_transform if automatic else known.rand_augment_transform
    augment = make(policy, options)
    functional = _v2().functional

    def change(image: Tensor) -> Tensor:
        picture = functional.to_pil_image((image * 255).round().to(torch.uint8))
        changed: Tensor = functional.pil_to_tensor(augment(picture))
        return changed / 255

    return change


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}, expected {low} to {high}")
