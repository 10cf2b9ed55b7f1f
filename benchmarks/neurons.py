"""A layer of LIF neurons alone, without its synapses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from benchmarks.measure import Facts, interleaved
from benchmarks.peer import lif as peer_lif
from spikeformers.ops import lif

ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """How many neurons, over how many steps.

    Attributes:
        timesteps: Steps T.
        values: Neurons * T.
        dtype: Of current and spikes.
    """

    timesteps: int = 4
    values: int = 50_000_000
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"LIF, T={self.timesteps}, {self.values:,} neurons * T"

    def current(self) -> Tensor:
        """Return random currents `[T, N]` that make about a tenth of the neurons fire."""
        shape = self.timesteps, self.values // self.timesteps
        generator = torch.Generator().manual_seed(0)
        return (0.5 + torch.randn(shape, generator=generator)).to(getattr(torch, self.dtype))


def lif_forward(neurons: Neurons, peer: str) -> list[Facts]:
    """Time the neurons without gradients; currents are read once and spikes written once."""
    x, layer = neurons.current(), peer_layer()

    def theirs() -> None:
        functional.reset_net(layer)
        layer(x)

    with torch.no_grad():
        return _lif(neurons, peer, lambda: lif(x), theirs, passes=2)


def lif_forward_backward(neurons: Neurons, peer: str) -> list[Facts]:
    """Time the neurons and the gradient of their currents.

    Backward reads the currents and the gradient of the spikes once, and writes one gradient.
    """
    x, layer = neurons.current().requires_grad_(), peer_layer()
    grad = neurons.current()

    def theirs() -> None:
        functional.reset_net(layer)
        torch.autograd.grad(layer(x), x, grad)

    return _lif(neurons, peer, lambda: torch.autograd.grad(lif(x)[0], x, grad), theirs, passes=5)


def peer_layer() -> nn.Module:
    """Return SpikingJelly's neurons, ready for all steps at once."""
    layer = peer_lif(v_threshold=1.0)
    layer.step_mode = "m"
    return layer


def _lif(
    neurons: Neurons,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    passes: int,
) -> list[Facts]:
    """Compare with SpikingJelly, and with a copy at the same count of bytes per second.

    The copy is a new tensor, as results of operations are: what the allocator takes meets all.
    """
    x = neurons.current()
    seconds = interleaved(dict(ours=ours, theirs=theirs, copy=x.clone), ROUNDS)
    gigabytes = x.nbytes / 1e9
    shared = dict(
        memory=None,
        dtype_ours=neurons.dtype,
        dtype_peer=neurons.dtype,
        firing_rate_measured=lif(x)[0].mean(dtype=torch.float32).item(),
        setting=str(neurons),
    )
    return [
        dict(
            shared,
            peer=peer,
            ours=1e3 * seconds["ours"],
            theirs=1e3 * seconds["theirs"],
            unit="ms",
        ),
        dict(
            shared,
            peer="copy-bandwidth",
            ours=passes * gigabytes / seconds["ours"],
            theirs=2 * gigabytes / seconds["copy"],
            unit="GB/s",
        ),
    ]
