"""Numerics: tensors in, tensors out, no modules."""

from spikeformers.ops.alphabet import OUTPUT_ALPHABETS, declare_alphabet
from spikeformers.ops.dsr import dsr
from spikeformers.ops.ilif import ilif
from spikeformers.ops.inductor import show_to_inductor
from spikeformers.ops.lif import lif
from spikeformers.ops.surrogate import SURROGATES

__all__ = [
    "OUTPUT_ALPHABETS",
    "SURROGATES",
    "declare_alphabet",
    "dsr",
    "ilif",
    "lif",
    "show_to_inductor",
]
