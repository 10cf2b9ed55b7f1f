"""Depthwise convolutions: what PyTorch is slow at on a CPU."""

from spikeformers.ops.depthwise.op import (
    depthwise_conv,
    depthwise_weight_grad,
    framed_depthwise,
    framed_depthwise_backward,
    spike_depthwise_conv,
    spike_depthwise_weight_grad,
)

__all__ = [
    "depthwise_conv",
    "depthwise_weight_grad",
    "framed_depthwise",
    "framed_depthwise_backward",
    "spike_depthwise_conv",
    "spike_depthwise_weight_grad",
]
