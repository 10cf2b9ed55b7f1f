"""A model in, an equal faster or simpler one out."""

from spikeformers.transform.accelerate import accelerate
from spikeformers.transform.compile import compile_spiking
from spikeformers.transform.expand import Expanded, expand
from spikeformers.transform.merge import merge_depthwise

__all__ = ["Expanded", "accelerate", "compile_spiking", "expand", "merge_depthwise"]
