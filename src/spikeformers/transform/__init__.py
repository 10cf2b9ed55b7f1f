"""A model in, an equal faster one out."""

from spikeformers.transform.compile import compile_spiking

__all__ = ["compile_spiking"]
