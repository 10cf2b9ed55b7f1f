"""Depthwise and pointwise convolutions as one dense kernel, which sees only what the first saw."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from spikeformers.layers import Conv, fold


def merge_depthwise(model: nn.Module) -> nn.Module:
    """Return a folded copy in which no depthwise convolution stands right before a pointwise one.

    Without a neuron between them the second one sees real values and multiplies. Both are linear,
    so one dense convolution equals the two, and it sees the spikes that the first one saw:

        K[o, i, h, w] = P[o, i] D[i, h, w]        bias = b_P + P b_D

    The price is its size, `k^2` weights for each one of `P`, and as many additions per spike. The
    other way is a neuron between the two (`layers.SpikeSepConv`), which is another network and has
    to be trained.

    Args:
        model: A model in eval mode. It is not changed.

    Returns:
        The copy. What merged has the second convolution's path; the first one's is gone.

    Raises:
        InputError: If `model` is in training mode.

    Reference:
        The separable convolution without a neuron: Yao et al., ICLR 2024, arXiv:2404.03663,
        sec. 3.2.
    """
    folded = fold(model)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _merge_neighbours(module)
    return folded


def _merge_neighbours(chain: nn.Sequential) -> None:
    parts = list(chain.named_children())
    for (name, first), (next_name, second) in pairwise(parts):
        if _is_depthwise(first) and _is_pointwise(second):
            setattr(chain, next_name, _dense(first, second))
            delattr(chain, name)


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, Conv) or module.padding_mode != "zeros":
        return False
    is_square = len({*module.kernel_size}) == len({*module.stride}) == len({*module.padding}) == 1
    per_channel = module.groups == module.in_channels == module.out_channels
    return per_channel and is_square and module.dilation == (1, 1)


def _is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, Conv):
        return False
    is_one_pixel = module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0)
    return is_one_pixel and module.groups == 1


def _dense(depthwise: Any, pointwise: Any) -> Conv:
    """Multiply the two out, in float64 so that it rounds once."""
    spread = depthwise.weight.double()[:, 0]  # [I, k, k]
    mix = pointwise.weight.double()[:, :, 0, 0]  # [O, I]
    kernel = torch.einsum("oi,ihw->oihw", mix, spread)
    bias = kernel.new_zeros(len(kernel))
    if depthwise.bias is not None:
        bias = bias + mix @ depthwise.bias.double()
    if pointwise.bias is not None:
        bias = bias + pointwise.bias.double()
    dtype = pointwise.weight.dtype
    stride, padding = depthwise.stride[0], depthwise.padding[0]
    return Conv.of(kernel.to(dtype), bias.to(dtype), stride, padding=padding)
