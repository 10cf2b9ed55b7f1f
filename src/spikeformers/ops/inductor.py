"""What TorchInductor sees of all neurons."""

from spikeformers.ops.dsr import inductor as dsr
from spikeformers.ops.ilif import inductor as ilif
from spikeformers.ops.lif import inductor as lif


def show_to_inductor() -> None:
    """Tell Inductor how to take the neurons apart; calling it again changes nothing."""
    from torch._inductor.decomposition import fast_random_decomps

    lif.show_to_inductor()
    ilif.show_to_inductor()
    dsr.show_to_inductor()
    # If it has compiled anything before, it has a copy of its table.
    fast_random_decomps.cache_clear()
