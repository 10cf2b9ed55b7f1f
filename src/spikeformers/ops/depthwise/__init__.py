"""Depthwise convolutions: what PyTorch is slow at on a CPU."""

from spikeformers.ops.depthwise.op import (
    depthwise_weight_grad,
    framed_depthwise,
    framed_depthwise_backward,
)

__all__ = ["depthwise_weight_grad", "framed_depthwise", "framed_depthwise_backward"]
