"""The leaky integrate-and-fire op: `reference.py` is the truth, `op.py` what PyTorch sees."""

from spikeformers.ops.lif.inductor import show_to_inductor
from spikeformers.ops.lif.op import lif

__all__ = ["lif", "show_to_inductor"]
