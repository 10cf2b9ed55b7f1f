"""Dense 3x3 convolutions by Winograd's algorithm, with a quarter of the products."""

from spikeformers.ops.winograd.native import is_faster
from spikeformers.ops.winograd.op import winograd_conv

__all__ = ["is_faster", "winograd_conv"]
