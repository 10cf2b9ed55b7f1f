"""Batch norm, residual sum and LIF neuron in one pass, spikes kept as bits: for training."""

from spikeformers.ops.norm_lif.op import (
    channel_moments,
    norm_add,
    norm_backward,
    norm_backward_,
    norm_lif,
    norm_lif_backward_,
    norm_products,
)

__all__ = [
    "channel_moments",
    "norm_add",
    "norm_backward",
    "norm_backward_",
    "norm_lif",
    "norm_lif_backward_",
    "norm_products",
]
