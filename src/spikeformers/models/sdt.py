"""Spike-driven Transformer, V1.

Convolutions and max pools split the image into tokens, and one trunk of membrane potentials carries
them through a relative position convolution, attention and MLPs. Every neuron stands in front of
the weights that its spikes drive, and the attention only masks and adds: no product of two
matrices, no scale, cost linear in tokens and channels.

Paper: Yao et al., "Spike-driven Transformer", NeurIPS 2023, arXiv:2307.01694.
Code: BICLab/Spike-Driven-Transformer, Apache-2.0.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    SDSA1,
    Branch,
    Chain,
    ChannelMLP,
    ClassificationHead,
    ConvBN,
    LinearBN,
    PerStep,
    Trunk,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import LIF, NeuronFactory


@part
class PooledSDSA1(SDSA1):
    """SDSA-1 for sparse event frames: spikes spread to their neighbours before they are counted.

    Keys and values spread over the map. Their agreement, and the masked queries, spread over the
    plane of tokens and channels of each head: to the next tokens in raster order and to the next
    channels. Here, unlike in SDSA-1, the number of heads matters.

    Args:
        As `SDSA1`.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        The authors' code for CIFAR10-DVS; the paper does not mention it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Mask the queries by the channels whose spread keys and values agree often enough."""
        agreement = self._spread_over_plane(_spread(self.k(x)) * _spread(self.v(x)))
        mask = self.neuron(agreement.sum((-2, -1), keepdim=True))
        return self.proj(self._spread_over_plane(self.q(x) * mask))

    def _spread_over_plane(self, x: Tensor) -> Tensor:
        """Spread over tokens and channels of a head, `[T, B, C, H, W]` -> `[T, B, C, H, W]`."""
        plane_TBhNd = x.flatten(3).unflatten(2, (self.heads, -1)).mT
        return _spread(plane_TBhNd).mT.flatten(2, 3).unflatten(3, x.shape[3:])


def _spread(x: Tensor) -> Tensor:
    """Let spikes spread by one place along the last two axes of five."""
    return F.max_pool2d(x.flatten(0, 1), 3, stride=1, padding=1).unflatten(0, x.shape[:2])


_SYNAPSES: dict[str, Any] = dict(qkv=LinearBN, proj=partial(LinearBN, bias=True))
FRAMES = partial(SDSA1, **_SYNAPSES)
EVENTS = partial(PooledSDSA1, **_SYNAPSES)
_CIFAR = dict(strides=(1, 1, 2, 2), num_classes=10)


@register(
    "sdt",
    variants={
        "8_384": dict(dim=384, depth=8),
        "6_512": dict(dim=512, depth=6),
        "8_512": dict(dim=512, depth=8),
        "10_512": dict(dim=512, depth=10),
        "8_768": dict(dim=768, depth=8),
        "cifar_2_256": dict(dim=256, depth=2, **_CIFAR),
        "cifar_2_512": dict(dim=512, depth=2, **_CIFAR),
        "cifar10dvs_2_256": dict(dim=256, depth=2, in_channels=2, attention=EVENTS, **_CIFAR),
        "gesture_2_256": dict(
            dim=256, depth=2, in_channels=2, strides=(1, 2, 2, 2), num_classes=11
        ),
        # A small size of our own, for images of 32x32 pixels.
        "xs32": dict(dim=80, depth=2, heads=4, **_CIFAR),
        "tiny": dict(dim=16, depth=2, heads=4, strides=(2, 2, 2, 1), num_classes=10),
    },
)
def sdt(
    *,
    dim: int,
    depth: int,
    heads: int = 8,
    expansion: int = 4,
    strides: Sequence[int] = (2, 2, 2, 2),
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
    attention: Callable[..., nn.Module] = FRAMES,
) -> Backbone:
    """Build a Spike-driven Transformer.

    Args:
        dim: Channels of the tokens.
        depth: Blocks of attention and MLP.
        heads: Attention heads.
        expansion: Widening of the MLP's hidden layer. With 1 the hidden layer is as wide as the
            trunk, and both halves of the MLP add to it.
        strides: Strides of the four convolutions that split the image, 1 or 2; a stride of 2 is a
            max pool.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons; some of the authors' runs learn the time constant (`PLIF`).
        attention: First part of a block; `PooledSDSA1` for CIFAR10-DVS.

    Raises:
        ConfigError: If `strides` are not four of 1 or 2, `dim` is below 8, or there is no block.
        InputError: If `heads` does not divide `dim`.

    Deviations:
        The official code constructs drop path and never calls it; here there is none. It mixes
        frames of CIFAR10-DVS over neighbouring channels, which the paper does not mention.

    Reference:
        Yao et al., NeurIPS 2023, arXiv:2307.01694, eq. 4 to 12.
    """
    if len(strides) != 4 or not {*strides} <= {1, 2}:
        raise ConfigError(f"strides={tuple(strides)}: expected four strides of 1 or 2")
    if dim < 8:
        raise ConfigError(f"dim={dim}: expected at least 8, of which the first convolution has 1")
    if depth < 1:
        raise ConfigError(f"depth={depth}: expected at least one block")

    split: dict[str, nn.Module] = {}
    width = in_channels
    for i, stride in enumerate(strides, 1):
        wider = dim // 2 ** (4 - i)
        split[f"conv{i}"] = ConvBN(width, wider, 3)
        # The last convolution hands its potentials to the trunk.
        if i < 4:
            split[f"neuron{i}"] = neuron()
        if stride == 2:
            split[f"pool{i}"] = PerStep(nn.MaxPool2d(3, stride, padding=1))
        width = wider

    def block() -> dict[str, Branch]:
        attn = Branch(neuron(), attention(dim, heads, neuron=neuron))
        if expansion == 1:
            mlp1, mlp2 = (Branch(neuron(), LinearBN(dim, dim, bias=True)) for _ in range(2))
            return dict(attn=attn, mlp1=mlp1, mlp2=mlp2)
        return dict(attn=attn, mlp=Branch(neuron(), ChannelMLP(dim, expansion, neuron)))

    position = Branch(neuron(), ConvBN(dim, dim, 3))
    blocks = [block() for _ in range(depth)]
    blocks[0] = dict(position=position, **blocks[0])
    stage = Stage(Chain(**split), Trunk(blocks), dim, math.prod(strides))
    head = None if num_classes is None else ClassificationHead(dim, num_classes, neuron)
    return Backbone([stage], head, in_channels)
