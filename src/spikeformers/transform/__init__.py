"""A model in, an equal faster or simpler one out."""

from spikeformers.transform.accelerate import accelerate
from spikeformers.transform.between import spike_between
from spikeformers.transform.compile import compile_spiking
from spikeformers.transform.expand import Expanded, expand
from spikeformers.transform.integer import IntegerNetwork, simulate_rounding
from spikeformers.transform.merge import merge_depthwise
from spikeformers.transform.quantize import quantize

__all__ = [
    "Expanded",
    "IntegerNetwork",
    "accelerate",
    "compile_spiking",
    "expand",
    "merge_depthwise",
    "quantize",
    "simulate_rounding",
    "spike_between",
]
