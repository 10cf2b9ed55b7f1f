"""Numerics: tensors in, tensors out, no modules."""

from spikeformers.ops.alphabet import OUTPUT_ALPHABETS, declare_alphabet
from spikeformers.ops.lif import lif, show_to_inductor
from spikeformers.ops.surrogate import SURROGATES

__all__ = ["OUTPUT_ALPHABETS", "SURROGATES", "declare_alphabet", "lif", "show_to_inductor"]
