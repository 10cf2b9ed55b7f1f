"""What is fast on a CPU: `csrc/winograd.cpp`, tiles of 4x4 outputs at a time."""

import ctypes
from math import ceil, prod

import torch
from torch import Tensor

from spikeformers.ops.native import DTYPES, INT, POINTER, Kernel, dtype_code, level, or_else
from spikeformers.ops.spike_conv.native import Conv
from spikeformers.ops.spike_conv.reference import out_shape
from spikeformers.ops.winograd import reference

TILE, STRIP = 4, 12
"""Outputs along the side of a tile, and tiles that a thread takes at once; see the kernel."""

_conv = Kernel("winograd_conv", INT, *[POINTER] * 4)


@or_else(reference.winograd_conv)
def winograd_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """See `reference.winograd_conv`."""
    y = x.new_empty((*out_shape(x, 3, 1, padding), len(weight)))
    conv = Conv.between(x, x.shape[3], y, 3, 1, padding)
    _conv(dtype_code(x), ctypes.byref(conv), x.contiguous(), weight.contiguous(), y)
    return y


def is_faster(x: Tensor, outputs: int, padding: int) -> bool:
    """Whether `winograd_conv` of `x` `[N, H, W, C]` is faster than PyTorch's convolution.

    On whole tiles it was measured to be 2.5 times faster; in bfloat16, which new processors
    multiply twice as fast, 1.3 times. What a tile has beyond the border is lost work, as are
    vectors of few channels; and every thread should have a strip of tiles. The baseline of x86-64
    has no instruction that multiplies and adds.
    """
    if _conv.missing or level() == "baseline" or x.device.type != "cpu" or x.dtype not in DTYPES:
        return False
    images, *size = out_shape(x, 3, 1, padding)
    tiles = images * prod(ceil(length / TILE) for length in size)
    gain, fewest = (1.3, 32) if x.dtype == torch.bfloat16 else (2.5, 16)
    used = images * prod(size) / max(1, tiles * TILE**2)
    is_parallel = tiles >= STRIP * torch.get_num_threads()
    return gain * used > 1.1 and min(x.shape[3], outputs) >= fewest and is_parallel
