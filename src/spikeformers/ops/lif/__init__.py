"""The leaky integrate-and-fire op: `reference.py` is the truth, `op.py` what PyTorch sees."""

from spikeformers.ops.lif.op import lif

__all__ = ["lif"]
