"""Batch norms in a row as one affine map: what they cost besides looking at the numbers.

They work on vectors `[C]` below autograd, where going through the dispatcher would take longer than
computing: the functions are called as they are, and no custom op stands in between.
"""

from spikeformers.ops.fold_norms.native import fold_norms, fold_norms_backward
from spikeformers.ops.fold_norms.reference import Folded, Moments, Norm

__all__ = ["Folded", "Moments", "Norm", "fold_norms", "fold_norms_backward"]
