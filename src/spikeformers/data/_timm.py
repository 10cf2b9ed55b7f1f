"""The only door to timm: its augmentation, its optimisers and its pretrained teachers."""

from __future__ import annotations

from typing import Any

from spikeformers.data._torchvision import _torchvision
from spikeformers.errors import MissingExtraError


def import_timm() -> Any:
    """Return the timm package.

    Raises:
        MissingExtraError: If it is not installed.
    """
    # timm imports torchvision, which does not load everywhere without help.
    _torchvision()
    try:
        import timm
        import timm.data
        import timm.optim
    except ModuleNotFoundError as error:
        raise MissingExtraError("timm", "timm") from error
    return timm
