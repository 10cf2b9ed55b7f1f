"""Spiking self-attention: softmax-free, on binary q, k and v, each time step on its own.

All maps are channel-first. Shapes carry their axes as a suffix: T steps, B batch, C channels,
h heads, d channels per head, N = H*W tokens.

| operator | definition (SN is a neuron, sum over tokens) |
|---|---|
| SSA | `SN(scale q (k^T v))` |
| SDSA-1 | `q * SN(sum(k * v))` |
| SDSA-2 | `SN(sum(q)) * v`, without k |
| SDSA-3 | SSA with re-parameterised synapses |
| SDSA-4 | SDSA-3 with a learned threshold |
| QKTA | `SN(sum(q)) * k`, the sum over a head's channels instead, without v |
| QKCA | `SN(sum(q)) * k` |
"""

from collections.abc import Callable

from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import LinearBN, RepConv, biased_linear
from spikeformers.neurons import LIF, LearnedThresholdLIF, Neuron, NeuronFactory

ATTENTION_THRESHOLD = 0.5


SynapseFactory = Callable[[int, int], nn.Module]
"""Makes the synapse from one width to another: `LinearBN`, `RepConv`."""


def spiking(synapse: nn.Module, neuron: Neuron) -> Chain:
    """Let a synapse drive a neuron: what makes q, k and v binary."""
    return Chain(synapse=synapse, neuron=neuron)


def matrix_product(q_TBhdN: Tensor, k_TBhdN: Tensor, v_TBhdN: Tensor) -> Tensor:
    """`q (k^T v)` in the cheaper order: `(v k^T) q` costs `2 N d^2`, `v (k^T q)` costs `2 N^2 d`.

    Both give the same integers.

    Shape:
        three times `[T, B, h, d, N]` -> `[T, B, h, d, N]`.
    """
    d, tokens = q_TBhdN.shape[-2:]
    if d < tokens:
        return v_TBhdN @ k_TBhdN.mT @ q_TBhdN
    return v_TBhdN @ (k_TBhdN.mT @ q_TBhdN)


class SDSA1(nn.Module):
    """Spike-driven self-attention of V1: a mask per channel, additions only.

    Args:
        dim: Channels.
        heads: Accepted for symmetry with SDSA-3 and checked; a sum per channel has no heads.
        neuron: Makes the neurons.
        qkv: Makes the synapses in front of them.
        proj: Makes the last synapse.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., "Spike-driven Transformer", NeurIPS 2023, arXiv:2307.01694, eq. 12.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        qkv: SynapseFactory = RepConv,
        proj: SynapseFactory = RepConv,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = spiking(qkv(dim, dim), neuron())
        self.k = spiking(qkv(dim, dim), neuron())
        self.v = spiking(qkv(dim, dim), neuron())
        self.neuron = neuron(v_threshold=ATTENTION_THRESHOLD)
        self.proj = proj(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mask the queries by the channels whose keys and values agree often enough."""
        agreement = (self.k(x) * self.v(x)).sum((-2, -1), keepdim=True)
        return self.proj(self.q(x) * self.neuron(agreement))


class SDSA2(nn.Module):
    """The smallest operator: a mask per channel from the queries alone; there are no keys.

    Args:
        dim: Channels.
        heads: Accepted for symmetry with SDSA-3 and checked; a sum per channel has no heads.
        neuron: Makes the neurons.
        qkv: Makes the synapses in front of them.
        proj: Makes the last synapse.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        qkv: SynapseFactory = RepConv,
        proj: SynapseFactory = RepConv,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.q = spiking(qkv(dim, dim), neuron())
        self.v = spiking(qkv(dim, dim), neuron())
        self.neuron = neuron(v_threshold=ATTENTION_THRESHOLD)
        self.proj = proj(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mask the values by the channels that are asked for often enough."""
        asked = self.q(x).sum((-2, -1), keepdim=True)
        return self.proj(self.neuron(asked) * self.v(x))


class SSA(nn.Module):
    """Spiking self-attention: `SN(scale q (k^T v))`, integers before the neuron.

    Args:
        dim: Channels.
        heads: Heads; divides `dim`. Channels are head-major.
        neuron: Makes the neurons.
        qkv: Makes the synapses of q, k and v.
        proj: Makes the last synapse.
        scale: Constant factor of the product; folding moves it into the threshold.
        v_threshold: Threshold of the neuron behind the product; `None` is the factory's own.
        value_expansion: Width of v relative to `dim`.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Zhou et al., "Spikformer", ICLR 2023, arXiv:2209.15425, eq. 6 to 8.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        qkv: SynapseFactory = LinearBN,
        proj: SynapseFactory = biased_linear,
        scale: float = 0.125,
        v_threshold: float | None = ATTENTION_THRESHOLD,
        value_expansion: int = 1,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.scale = scale
        self.product = matrix_product
        self.q = spiking(qkv(dim, dim), neuron())
        self.k = spiking(qkv(dim, dim), neuron())
        self.v = spiking(qkv(dim, value_expansion * dim), neuron())
        self.neuron = _with_threshold(neuron, v_threshold)
        self.proj = proj(value_expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of each step."""
        return self.proj(self.neuron(self.attend(self.q(x), self.k(x), self.v(x))))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `scale q (k^T v)` of spikes `[T, B, C, H, W]`, head by head."""
        heads = (x.flatten(3).unflatten(2, (self.heads, -1)) for x in (q, k, v))
        y = self.product(*heads).flatten(2, 3).unflatten(3, q.shape[3:])
        return y if self.scale == 1 else self.scale * y

    def fold(self) -> "SSA":
        """Move the scale into the threshold where that is exact; elsewhere it stays."""
        if (neuron := self.neuron.absorb(self.scale)) is not None:
            self.neuron, self.scale = neuron, 1.0
        return self


class SDSA3(SSA):
    """Spike-driven self-attention of V2: SSA with re-parameterised synapses.

    Args:
        dim: Channels.
        heads: Heads; divides `dim`. Channels are head-major.
        neuron: Makes the neurons.
        scale: Constant factor of the product; folding moves it into the threshold.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(
        self, dim: int, heads: int, neuron: NeuronFactory = LIF, scale: float = 0.125
    ) -> None:
        super().__init__(dim, heads, neuron, qkv=RepConv, proj=RepConv, scale=scale)


class SDSA4(SDSA3):
    """SDSA-3 whose last neuron learns its threshold.

    Args:
        dim: Channels.
        heads: Heads; divides `dim`.
        neuron: Makes the neurons of q, k and v.
        attn_neuron: Makes the last neuron; it learns its threshold from SDSA-3's value.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        attn_neuron: NeuronFactory = LearnedThresholdLIF,
    ) -> None:
        super().__init__(dim, heads, neuron)
        self.neuron = attn_neuron(v_threshold=ATTENTION_THRESHOLD)


class QKTA(nn.Module):
    """Q-K token attention: `SN(sum_d(q)) * k`, one bit per head and token says which keys pass.

    Args:
        dim: Channels.
        heads: Heads; divides `dim`. Channels are head-major.
        neuron: Makes the neurons.
        qk: Makes the synapses of q and k.
        proj: Makes the last synapse.
        v_threshold: Threshold of the neuron that makes the bits; `None` is the factory's own.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Zhou et al., "QKFormer", NeurIPS 2024, arXiv:2403.16552.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        qk: SynapseFactory = LinearBN,
        proj: SynapseFactory = biased_linear,
        v_threshold: float | None = ATTENTION_THRESHOLD,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.q = spiking(qk(dim, dim), neuron())
        self.k = spiking(qk(dim, dim), neuron())
        self.neuron = _with_threshold(neuron, v_threshold)
        self.proj = proj(dim, dim)

    def by_head(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, h, d, H, W]`."""
        return x.unflatten(2, (self.heads, -1))

    def ask(self, x: Tensor) -> Tensor:
        """Count the queries of each head and token, `[T, B, h, 1, H, W]`."""
        return self.by_head(self.q(x)).sum(3, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Mask the keys where too little is asked for."""
        mask = self.neuron(self.ask(x))
        return self.proj((mask * self.by_head(self.k(x))).flatten(2, 3))


class QKCA(QKTA):
    """Q-K channel attention: `SN(sum_N(q)) * k`, one bit per channel says which keys pass.

    Arguments as in `QKTA`; a sum per channel has no heads, but they are checked.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Zhou et al., "QKFormer", NeurIPS 2024, arXiv:2403.16552.
    """

    def ask(self, x: Tensor) -> Tensor:
        """Count the queries of each channel, `[T, B, h, d, 1, 1]`."""
        return self.by_head(self.q(x)).sum((-2, -1), keepdim=True)


def _with_threshold(neuron: NeuronFactory, v_threshold: float | None) -> Neuron:
    """Make a neuron with this threshold; `None` leaves the factory its own."""
    return neuron() if v_threshold is None else neuron(v_threshold=v_threshold)


def check_heads(dim: int, heads: int) -> None:
    """Raise `InputError` unless `heads` divides `dim`."""
    if heads < 1 or dim % heads:
        raise InputError(f"heads={heads} does not divide dim={dim}")
