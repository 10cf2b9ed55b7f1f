"""MSViT, QKFormer with attention at two scales.

The token attention of the early stages asks twice: with queries of a token itself, and with those
that a wider kernel makes from its neighbours. Both are counted, and one bit per head and token lets
the token's keys pass or not. The first two stages are as wide as each other; all else is QKFormer.

Paper: Hua et al., "MSVIT: Improving Spiking Vision Transformer Using Multi-scale Attention Fusion",
IJCAI 2025, arXiv:2505.14719.
Code: Nanhu-AI-Lab/MSViT, without licence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from spikeformers.layers import (
    QKTA,
    SPEDS,
    SSA,
    BatchNorm,
    Chain,
    ChannelMLP,
    LinearBN,
    PerStep,
    Synapse,
    image_stem,
    sew,
    small_image_stem,
    spiking,
)
from spikeformers.models._backbone import Backbone
from spikeformers.models._pyramid import pyramid
from spikeformers.models._registry import part, register
from spikeformers.neurons import LIF, AcrossBatch, NeuronFactory


class RasterConv(nn.Conv1d):
    """Convolution along the tokens `[N, C, H, W]` in raster order: rows run on into each other."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the rows, one behind the other."""
        return super().forward(x.flatten(2)).unflatten(2, x.shape[2:])


@part
class RasterConvBN(Synapse):
    """`RasterConv` over three tokens, and batch norm.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, out_channels, H, W]`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = RasterConv(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = BatchNorm(out_channels)

    def weigh(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)

    def fold(self) -> PerStep:
        """Scale the kernel by the norm's gain; its offset becomes the bias."""
        gain, offset = self.norm.affine_map()
        weight = self.conv.weight * gain.view(-1, 1, 1)
        width, narrow, size = weight.shape
        conv = RasterConv(narrow, width, size, padding=1, device="meta")
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(offset.detach())
        return PerStep(conv)


@part
class MSSA(QKTA):
    """Multi-scale spiking attention: `SN(sum_d(q) + sum_d(p)) * k`, `p` from a wider kernel.

    Args:
        dim: Channels.
        heads: Heads; divides `dim`. Channels are head-major.
        neuron: Makes the neurons.
        p: Makes the synapse of the wider branch; `partial(ConvBN, kernel_size=3)` has neighbours
            above and below as well.
        v_threshold: Threshold of the neuron that makes the bits; `None` is the factory's own.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.

    Reference:
        Hua et al., IJCAI 2025, arXiv:2505.14719.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        neuron: NeuronFactory = LIF,
        p: Callable[[int, int], nn.Module] = RasterConvBN,
        v_threshold: float | None = None,
    ) -> None:
        super().__init__(dim, heads, neuron, v_threshold=v_threshold)
        self.p = spiking(p(dim, dim), neuron())

    def ask(self, x: Tensor) -> Tensor:
        """Count the queries of both scales for each head and token, `[T, B, h, 1, H, W]`."""
        return super().ask(x) + self.by_head(self.p(x)).sum(3, keepdim=True)


@part
class ChannelwiseMSSA(MSSA):
    """`SN(sum_d(q) + p) * k`: `p` is not summed, so each channel has a bit of its own.

    Arguments as in `MSSA`. The authors' CIFAR-100 file has it, with a 1x1 kernel for `p`.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`.
    """

    def ask(self, x: Tensor) -> Tensor:
        """Add each channel's spike to its head's count of queries, `[T, B, h, d, H, W]`."""
        return QKTA.ask(self, x) + self.by_head(self.p(x))


CIFAR: dict[str, Any] = dict(stem=small_image_stem, embed_strides=(1, 2))
CIFAR100: dict[str, Any] = dict(attention=partial(ChannelwiseMSSA, p=LinearBN), **CIFAR)
_CIFAR_SIZE = dict(dims=(192, 192, 384), depths=(1, 1, 2), heads=8)


@register(
    "msvit",
    variants={
        "10_384": dict(dims=(192, 192, 384), heads=6),
        "10_512": dict(dims=(256, 256, 512), heads=8),
        "10_768": dict(dims=(384, 384, 768), heads=12),
        "cifar10_4_384": dict(**_CIFAR_SIZE, num_classes=10, **CIFAR),
        "cifar100_4_384": dict(**_CIFAR_SIZE, num_classes=100, **CIFAR100),
        "tiny": dict(
            dims=(8, 8, 16), depths=(1, 1, 1), heads=4, num_classes=10, stem=small_image_stem
        ),
    },
)
def msvit(
    *,
    dims: Sequence[int],
    depths: Sequence[int] = (1, 2, 7),
    heads: int,
    expansion: int = 4,
    stem: Callable[..., SPEDS] = image_stem,
    embed_strides: Sequence[int] = (2, 1),
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = LIF,
    attention: Callable[..., nn.Module] = MSSA,
    attn_threshold: float | None = None,
    across_batch: bool = False,
) -> Backbone:
    """Build an MSViT.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage; those of the last have full self-attention.
        heads: Attention heads; they divide all widths.
        expansion: Widening of the MLP.
        stem: Makes the first embedding: `image_stem` or `small_image_stem`.
        embed_strides: Strides of the convolutions of every later embedding.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons.
        attention: Attention of all stages but the last: `MSSA` or `ChannelwiseMSSA`.
        attn_threshold: Threshold of the neurons behind the sums of attention; `None` is that of
            the others.
        across_batch: Whether the neuron behind self-attention scans the samples of a batch as if
            they were time steps; see the deviations.

    Raises:
        ConfigError: If `dims` and `depths` differ in length.
        InputError: If `heads` does not divide a width.

    Deviations:
        The official code hands the neuron behind self-attention time and batch as one axis, so the
        samples of a batch influence each other. Here they do not, except with `across_batch`, which
        weights loaded by `from_official` get unless `corrected` is set: they were trained and
        measured that way. At a batch of one there is no difference.

        The authors ask for a threshold of 0.5 behind attention, but their neuron keeps 1.0; so does
        ours.

    Reference:
        Hua et al., IJCAI 2025, arXiv:2505.14719.
    """

    def token_block(dim: int) -> dict[str, nn.Module]:
        attn = attention(dim, heads, neuron=neuron, v_threshold=attn_threshold)
        return dict(attn=sew(Chain(fn=attn, neuron=neuron())), mlp=mlp(dim))

    def ssa_block(dim: int) -> dict[str, nn.Module]:
        attn = SSA(dim, heads, neuron=neuron, v_threshold=attn_threshold)
        last = AcrossBatch(neuron()) if across_batch else neuron()
        return dict(attn=sew(Chain(fn=attn, neuron=last)), mlp=mlp(dim))

    def mlp(dim: int) -> nn.Module:
        return sew(Chain(fn=ChannelMLP(dim, expansion, neuron), neuron=neuron()))

    blocks = [token_block] * (len(dims) - 1) + [ssa_block]
    return pyramid(dims, depths, blocks, stem, embed_strides, in_channels, num_classes, neuron)
