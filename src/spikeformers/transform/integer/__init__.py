"""Networks of integers: the program, what its operations do, and how a graph becomes one."""

from spikeformers.transform.integer.lower import lower
from spikeformers.transform.integer.network import IntegerNetwork, Operation, Step
from spikeformers.transform.integer.program import SAMPLES, TIMESTEPS
from spikeformers.transform.integer.rounding import simulate_rounding

__all__ = [
    "SAMPLES",
    "TIMESTEPS",
    "IntegerNetwork",
    "Operation",
    "Step",
    "lower",
    "simulate_rounding",
]
