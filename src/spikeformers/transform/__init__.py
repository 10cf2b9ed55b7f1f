"""A model in, an equal faster or simpler one out."""

from spikeformers.transform.compile import compile_spiking
from spikeformers.transform.expand import Expanded, expand

__all__ = ["Expanded", "compile_spiking", "expand"]
