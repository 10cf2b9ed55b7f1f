"""The op of neurons that train on representations: `reference.py` is the truth, `op.py` the op."""

from spikeformers.ops.dsr.op import check_dsr, dsr
from spikeformers.ops.dsr.reference import represent

__all__ = ["check_dsr", "dsr", "represent"]
