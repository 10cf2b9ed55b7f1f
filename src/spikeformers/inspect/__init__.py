"""What people want to see of a model: spikes, attention, predictions, saved as JSON and NPZ."""

from spikeformers.inspect.choose import choose
from spikeformers.inspect.gather import gather

__all__ = ["choose", "gather"]
