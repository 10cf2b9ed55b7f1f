"""A neuron between depthwise and pointwise convolution, where a published model has none."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.layers import BatchNorm, SepConv, SpikeSepConv

__all__ = ["spike_between"]


@torch.no_grad()
def spike_between(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Return a copy whose `SepConv` are `SpikeSepConv`: another network, to be fine-tuned.

    All weights are taken over. The norm in front of each new neuron starts with gain 1, offset 0
    and the statistics of the batches. What `create_model` made can be saved: the token mixer is
    then named among its overrides.

    Args:
        model: In eval mode. It is not changed.
        batches: Encoded inputs `[T, B, C, H, W]`.

    Reference:
        The neuron between: Yao et al., T-PAMI 2025, arXiv:2411.16061.
    """
    twin = copy.deepcopy(model)
    norms = []
    for path, module in list(twin.named_modules()):
        if isinstance(module, SepConv):
            spiking = _with_neuron(module)
            twin.set_submodule(path, spiking)
            norms.append(spiking.depthwise.norm)
    _calibrate(twin, norms, batches)
    config = getattr(model, "config", None)
    if norms and config is not None:
        side = spiking.depthwise.conv.kernel_size[0]
        mixer = {"token_mixer": {"SpikeSepConv": {"kernel_size": side}}}
        twin.config = dataclasses.replace(config, overrides={**config.overrides, **mixer})
    return twin


def _with_neuron(mixer: Any) -> Any:
    dim, side = mixer.expand.conv.in_channels, mixer.depthwise.kernel_size[0]
    spiking: Any = SpikeSepConv(dim, side, neuron=lambda: copy.deepcopy(mixer.neuron))
    spiking.expand, spiking.project = mixer.expand, mixer.project
    spiking.depthwise.conv.weight = mixer.depthwise.weight
    return spiking.to(mixer.depthwise.weight).eval()


def _calibrate(model: nn.Module, norms: list[BatchNorm], batches: Iterable[Tensor]) -> None:
    """Set the statistics of some norms to plain means over the batches."""
    momenta = [norm.momentum for norm in norms]
    for count, x in enumerate(batches, start=1):
        for norm in norms:
            norm.train()
            norm.momentum = 1 / count
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
