"""The integer neuron op: `reference.py` is the truth, `op.py` what PyTorch sees."""

from spikeformers.ops.ilif.burst import ilif_burst
from spikeformers.ops.ilif.op import ilif

__all__ = ["ilif", "ilif_burst"]
