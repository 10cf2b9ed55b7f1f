"""Convolutions of spike bits, and their weight gradients, as sums of rows chosen by spikes."""

from spikeformers.ops.spike_conv.op import spike_conv, spike_conv_weight_grad

__all__ = ["spike_conv", "spike_conv_weight_grad"]
