"""Spike-driven self-attention: softmax-free, on binary q, k and v, each time step on its own.

All maps are channel-first. Shapes carry their axes as a suffix: T steps, B batch, C channels,
h heads, d channels per head, N = H*W tokens.

| operator | definition (SN is a neuron, sum over tokens) |
|---|---|
| SDSA-1 | `q * SN(sum(k * v))` |
| SDSA-2 | `SN(sum(q)) * v`, without k |
| SDSA-3 | `SN(scale q (k^T v))` |
| SDSA-4 | SDSA-3 with a learned threshold |
"""

from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import RepConv
from spikeformers.neurons import LIF, LearnedThresholdLIF, NeuronFactory

ATTENTION_THRESHOLD = 0.5


def _spiking_projection(dim: int, neuron: NeuronFactory) -> Chain:
    return Chain(conv=RepConv(dim, dim), neuron=neuron())


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

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., "Spike-driven Transformer", NeurIPS 2023, arXiv:2307.01694, eq. 12.
    """

    def __init__(self, dim: int, heads: int, neuron: NeuronFactory = LIF) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.q = _spiking_projection(dim, neuron)
        self.k = _spiking_projection(dim, neuron)
        self.v = _spiking_projection(dim, neuron)
        self.neuron = neuron(v_threshold=ATTENTION_THRESHOLD)
        self.proj = RepConv(dim, dim)

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

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Yao et al., ICLR 2024, arXiv:2404.03663, sec. 3.3.
    """

    def __init__(self, dim: int, heads: int, neuron: NeuronFactory = LIF) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.q = _spiking_projection(dim, neuron)
        self.v = _spiking_projection(dim, neuron)
        self.neuron = neuron(v_threshold=ATTENTION_THRESHOLD)
        self.proj = RepConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mask the values by the channels that are asked for often enough."""
        asked = self.q(x).sum((-2, -1), keepdim=True)
        return self.proj(self.neuron(asked) * self.v(x))


class SDSA3(nn.Module):
    """Spike-driven self-attention of V2: `SN(scale q (k^T v))`, integers before the neuron.

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
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.scale = scale
        self.q = _spiking_projection(dim, neuron)
        self.k = _spiking_projection(dim, neuron)
        self.v = _spiking_projection(dim, neuron)
        self.neuron = neuron(v_threshold=ATTENTION_THRESHOLD)
        self.proj = RepConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of each step."""
        q, k, v = (
            branch(x).flatten(3).unflatten(2, (self.heads, -1))
            for branch in (self.q, self.k, self.v)
        )
        y = matrix_product(q, k, v).reshape(x.shape)
        return self.proj(self.neuron(y if self.scale == 1 else self.scale * y))

    def fold(self) -> "SDSA3":
        """Move the scale into the threshold where that is exact; elsewhere it stays."""
        if (neuron := self.neuron.absorb(self.scale)) is not None:
            self.neuron, self.scale = neuron, 1.0
        return self


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


def check_heads(dim: int, heads: int) -> None:
    """Raise `InputError` unless `heads` divides `dim`."""
    if heads < 1 or dim % heads:
        raise InputError(f"heads={heads} does not divide dim={dim}")
