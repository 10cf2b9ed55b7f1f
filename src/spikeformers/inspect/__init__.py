"""What people want to see of a model: rates, rasters, predictions, gathered into JSON and NPZ."""

from spikeformers.inspect.gather import gather

__all__ = ["gather"]
