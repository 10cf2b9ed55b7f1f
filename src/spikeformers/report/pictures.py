"""Pictures and heat maps as data URIs; the only file that knows Pillow."""

from __future__ import annotations

import base64
import io
from types import ModuleType

import numpy as np

from spikeformers.errors import MissingExtraError

# Up to this side a picture is shown pixel by pixel; a larger one is a photograph.
PIXELS = 64
_PHOTOGRAPH = 160
_HEAT = 64
# Dark to bright in lightness as well, so that it survives grey print and colour blindness.
_RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def image_uri(image: np.ndarray) -> str:
    """Encode a picture, uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]`, as a data URI.

    Small ones stay exact; photographs shrink to what the page shows.
    """
    picture = _pillow().fromarray(image)
    if max(picture.size) <= PIXELS or picture.mode == "RGBA":
        return _uri(picture, "png", optimize=True)
    picture.thumbnail((_PHOTOGRAPH, _PHOTOGRAPH))
    return _uri(picture, "jpeg", quality=85)


def heat_uri(values: np.ndarray) -> str:
    """Encode a map `[h, w]` in colours from its lowest to its highest value, bilinearly enlarged.

    A map that is the same everywhere is dark.
    """
    pillow = _pillow()
    span = float(np.ptp(values))
    shares = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    smooth = pillow.fromarray(shares.astype(np.float32)).resize((_HEAT, _HEAT), pillow.BILINEAR)
    heat = pillow.fromarray(np.rint(255 * np.asarray(smooth)).astype(np.uint8))
    stops = np.linspace(0, 255, len(_RAMP))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*_RAMP, strict=True)]
    heat.putpalette(np.rint(np.stack(channels, axis=1)).astype(np.uint8).tobytes())
    # What is cold lets the picture through, what is hot covers it.
    opacity = np.linspace(0.25, 0.75, 256)
    return _uri(heat, "png", transparency=np.rint(255 * opacity).astype(np.uint8).tobytes())


def _uri(picture: object, kind: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)  # type: ignore[attr-defined]
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "train") from error
    return Image
