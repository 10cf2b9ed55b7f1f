"""What is compared: a network in training, as this library and as SpikingJelly run it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.memopt import optimize_memory
from torch import Tensor, nn

import spikeformers as sf
from benchmarks.peer import MetaSpikeFormer, Residual
from spikeformers.analysis.firing import count_spikes
from spikeformers.neurons import LIF


@dataclass(frozen=True, kw_only=True)
class Network:
    """A Meta-SpikeFormer and the batch it trains on; the default is the published 15M.

    Attributes:
        dims: Width of each stage.
        depths: Blocks of each stage.
        heads: Attention heads.
        v_threshold: Threshold of the neurons; a lower one makes them fire more often.
        timesteps: Steps T.
        batch: Images B.
        image_size: Height and width in pixels.
        dtype: "float32", or "bfloat16" for autocast.
    """

    dims: Sequence[int] = (32, 64, 128, 256, 360)
    depths: Sequence[int] = (1, 1, 2, 6, 2)
    heads: int = 8
    v_threshold: float = 1.0
    timesteps: int = 4
    batch: int = 4
    image_size: int = 224
    dtype: str = "float32"

    def __str__(self) -> str:
        is_published = (self.dims, self.depths) == (Network.dims, Network.depths)
        size = "15M" if is_published else f"{_dashed(self.dims)} x {_dashed(self.depths)}"
        return (
            f"Meta-SpikeFormer {size}, T={self.timesteps}, B={self.batch}, "
            f"{self.image_size}x{self.image_size}, threshold {self.v_threshold:g}"
        )

    def images(self) -> Tensor:
        """Return the same random batch for everybody, repeated over time, `[T, B, 3, H, W]`."""
        shape = self.batch, 3, self.image_size, self.image_size
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return sf.encode.direct(images, self.timesteps)

    def readable(self) -> nn.Module:
        """Return the model as it is written down, with the same random weights for everybody."""
        torch.manual_seed(0)
        return sf.create_model(
            "meta_spikeformer_15m",
            dims=self.dims,
            depths=self.depths,
            heads=self.heads,
            neuron=partial(LIF, v_threshold=self.v_threshold),
        )

    def firing_rate(self) -> float:
        """Return spikes / (neurons * T) of one forward pass in training mode."""
        model = self.readable()
        with torch.no_grad(), count_spikes(model) as (spikes, neuron_steps):
            model(self.images())
        return float(spikes / neuron_steps)


def _dashed(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))


class Training:
    """A model, its batch and its optimiser."""

    def __init__(self, network: Network, model: nn.Module) -> None:
        self.model = model
        self.images = network.images()
        self.labels = torch.arange(network.batch)
        self.autocast = partial(
            torch.autocast, "cpu", torch.bfloat16, enabled=network.dtype == "bfloat16"
        )
        # So small a rate that the firing rates stay what they are.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, fused=True)

    def loss(self) -> Tensor:
        """Run forward."""
        with self.autocast():
            return F.cross_entropy(self.model(self.images).mean(0).float(), self.labels)

    def step(self) -> None:
        """Run forward and backward, and update the weights."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


class PeerTraining(Training):
    """The same with SpikingJelly's neurons, which remember the last batch until they are reset."""

    def loss(self) -> Tensor:
        """Run forward from rest."""
        functional.reset_net(self.model)
        return super().loss()


def ours(network: Network, memory: str) -> Training:
    """Return the accelerated model, in one of its two memory modes, "fast" or "low"."""
    return Training(network, sf.accelerate(network.readable(), memory=memory))


def theirs(network: Network) -> Training:
    """Return SpikingJelly's model with the same weights."""
    model = MetaSpikeFormer(
        network.dims, network.depths, network.heads, v_threshold=network.v_threshold
    )
    model.take_weights(network.readable())
    return PeerTraining(network, model)


def theirs_compiled(network: Network) -> Training:
    """Return the same behind `torch.compile`, which works at the first step."""
    training = theirs(network)
    training.model.compile()
    return training


def theirs_checkpointed(network: Network) -> Training:
    """Return the same with SpikingJelly's own way to save memory: it runs every branch again."""
    training = theirs(network)
    optimize_memory(training.model, Residual, lambda _: training.loss(), level=1)
    return training


SIDES: dict[str, Callable[[Network], Training]] = {
    "fast": partial(ours, memory="fast"),
    "low": partial(ours, memory="low"),
    "spikingjelly-eager": theirs,
    "spikingjelly-bf16": theirs,
    "spikingjelly-compiled": theirs_compiled,
    "spikingjelly-memopt": theirs_checkpointed,
}
"""Our two memory modes and all peers, by name."""

MODES = ("fast", "low")
