"""The only door to torchvision: imports it even where its compiled operators do not load."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from spikeformers.errors import MissingExtraError


def _torchvision() -> Any:
    """Return the torchvision package.

    PyPI's torchvision is compiled against the CUDA build of PyTorch. Next to a CPU build its
    operators do not load, and `import torchvision` then stops with "operator torchvision::nms does
    not exist", because it attaches meta kernels to operators nobody declared. The transforms and
    the folder reader that we use are pure Python; declaring the schemas is all the import lacks.

    Raises:
        MissingExtraError: If torchvision is not installed.
    """
    try:
        return _import()
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _declare_operators()
    return _import()


def _import() -> Any:
    with warnings.catch_warnings():
        # Its file decoders are compiled too; we decode with Pillow and do not miss them.
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            import torchvision
            import torchvision.transforms.v2
        except ModuleNotFoundError as error:
            raise MissingExtraError("torchvision", "train") from error
    return torchvision


def _declare_operators() -> None:
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            # Called without a Library, `define` makes one and keeps it alive.
            torch.library.define(f"torchvision::{name}", schema)
