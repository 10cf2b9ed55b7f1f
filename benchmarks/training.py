"""A step of training: its time, what autograd keeps for it, and the memory of its process."""

import torch

from benchmarks.measure import Facts, fresh, interleaved, saved_bytes
from benchmarks.sides import MODES, SIDES, Network
from spikeformers.train.log import peak_memory

ROUNDS = 3


def train_step(network: Network, peer: str) -> list[Facts]:
    """Time forward, backward and the update of the weights, after a first step."""
    steps = {side: SIDES[side](network).step for side in (*MODES, peer)}
    seconds = interleaved(steps, ROUNDS)
    return compared(network, peer, {side: 1e3 * s for side, s in seconds.items()}, "ms")


def saved_activations(network: Network, peer: str) -> list[Facts]:
    """Count the bytes that autograd keeps from forward to backward, without the model's own."""
    saved = {}
    for side in (*MODES, peer):
        training = SIDES[side](network)
        saved[side] = saved_bytes(training.model, training.loss) / 2**20
    return compared(network, peer, saved, "MiB")


def peak_rss(network: Network, peer: str) -> list[Facts]:
    """Read `VmHWM` of one process per side after two steps, Python and PyTorch included."""
    peaks = {side: fresh(peak_of, side, network) for side in (*MODES, peer)}
    return compared(network, peer, peaks, "MiB")


def peak_of(side: str, network: Network) -> float | None:
    """Return the most memory that this process holds while it trains."""
    training = SIDES[side](network)
    for _ in range(2):
        training.step()
    return peak_memory(torch.device("cpu"))


def compared(network: Network, peer: str, figures: dict[str, float], unit: str) -> list[Facts]:
    """Return one row for each of our memory modes."""
    shared = dict(
        peer=peer,
        theirs=figures[peer],
        unit=unit,
        dtype_ours=network.dtype,
        dtype_peer=network.dtype,
        firing_rate_measured=network.firing_rate(),
        setting=str(network),
    )
    return [dict(shared, memory=mode, ours=figures[mode]) for mode in MODES]
