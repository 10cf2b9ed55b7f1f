"""Depthwise convolutions: the gradient of their weights, for which PyTorch is slow on a CPU."""

from spikeformers.ops.depthwise.op import depthwise_weight_grad

__all__ = ["depthwise_weight_grad"]
