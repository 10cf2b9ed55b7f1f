"""The only door to Pillow's decoders: from a file, or from the bytes of one, to a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from spikeformers.errors import DataError, MissingExtraError


def decode_image(file: Path | BinaryIO, channels: int, source: str) -> Tensor:
    """Decode one image.

    Args:
        file: An image file in any format that Pillow reads.
        channels: 1 converts to grey, 3 to RGB.
        source: What the image is called in an error message.

    Returns:
        The image, uint8 `[C, H, W]`.

    Raises:
        DataError: If it is no readable image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "train") from error
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    # Pillow's decoders raise OSError, SyntaxError, struct.error and others for damaged files.
    except Exception as error:
        raise DataError(
            f"cannot read the image {source} ({error}): replace or remove the file"
        ) from error
    image_hwc = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels))
    return image_hwc.permute(2, 0, 1).contiguous()
