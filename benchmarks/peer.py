"""The peer: Meta-SpikeFormer on the public layers of SpikingJelly 2.

It is the network of `spikeformers.models.meta_spikeformer`, parameter by parameter and in the same
order, written as a user of SpikingJelly would: stateful neurons in multi-step mode, which
`functional.reset_net` brings to rest after every step of training.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn


def lif(v_threshold: float) -> neuron.LIFNode:
    """Make the neuron of the paper."""
    return neuron.LIFNode(
        tau=2.0,
        v_threshold=v_threshold,
        surrogate_function=surrogate.Sigmoid(),
        detach_reset=True,
    )


def conv_bn(
    width: int, out: int, kernel_size: int, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    """Convolve and normalise."""
    conv = layer.Conv2d(width, out, kernel_size, stride, kernel_size // 2, bias=bias)
    return nn.Sequential(conv, layer.BatchNorm2d(out))


def linear_bn(width: int, out: int) -> nn.Sequential:
    """Map the channels of every token, `[T, B, C, N]`, and normalise."""
    return nn.Sequential(layer.Conv1d(width, out, 1), layer.BatchNorm1d(out))


class SepConv(nn.Sequential):
    """Separable convolution, with its leading neuron."""

    def __init__(self, dim: int, v_threshold: float) -> None:
        hidden = 2 * dim
        super().__init__(
            lif(v_threshold),
            conv_bn(dim, hidden, 1),
            lif(v_threshold),
            layer.Conv2d(hidden, hidden, 7, padding=3, groups=hidden, bias=False),
            conv_bn(hidden, dim, 1),
        )


class ChannelConv(nn.Sequential):
    """Two 3x3 convolutions, with their leading neuron."""

    def __init__(self, dim: int, v_threshold: float) -> None:
        super().__init__(
            lif(v_threshold),
            conv_bn(dim, 4 * dim, 3),
            lif(v_threshold),
            conv_bn(4 * dim, dim, 3),
        )


class ChannelMLP(nn.Sequential):
    """Two linear maps over channels, with their leading neuron."""

    def __init__(self, dim: int, v_threshold: float) -> None:
        super().__init__(
            lif(v_threshold),
            linear_bn(dim, 4 * dim),
            lif(v_threshold),
            linear_bn(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of a map `[T, B, C, H, W]`."""
        return super().forward(x.flatten(3)).view_as(x)


class BorderNorm(layer.BatchNorm2d):
    """Batch norm that surrounds its output by one pixel of its image of zero."""

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, C, H+2, W+2]`."""
        y = F.pad(super().forward(x), (1, 1, 1, 1))
        gain = self.weight.detach() / (self.running_var + self.eps).sqrt()
        border = (self.bias.detach() - self.running_mean * gain).view(-1, 1).to(y.dtype)
        y[..., 0, :] = y[..., -1, :] = border
        y[..., :, 0] = y[..., :, -1] = border
        return y


class RepConv(nn.Sequential):
    """Re-parameterised 3x3 convolution and the norm behind it."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            layer.Conv2d(dim, dim, 1, bias=False),
            BorderNorm(dim),
            layer.Conv2d(dim, dim, 3, groups=dim, bias=False),
            layer.Conv2d(dim, dim, 1, bias=False),
            layer.BatchNorm2d(dim),
            layer.BatchNorm2d(dim),
        )


class SDSA3(nn.Module):
    """Spike-driven self-attention, with its leading neuron."""

    def __init__(self, dim: int, heads: int, v_threshold: float) -> None:
        super().__init__()
        self.heads = heads
        self.lead = lif(v_threshold)
        self.q = nn.Sequential(RepConv(dim), lif(v_threshold))
        self.k = nn.Sequential(RepConv(dim), lif(v_threshold))
        self.v = nn.Sequential(RepConv(dim), lif(v_threshold))
        self.neuron = lif(0.5)
        self.proj = RepConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of each step: `q (k^T v)` with tokens `[T, B, h, N, d]`."""
        x = self.lead(x)
        q, k, v = (
            branch(x).flatten(3).unflatten(2, (self.heads, -1)).mT
            for branch in (self.q, self.k, self.v)
        )
        y = (q @ (k.mT @ v) * 0.125).mT.reshape(x.shape)
        return self.proj(self.neuron(y))


class Residual(nn.Module):
    """`x + fn(x)`."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the membrane."""
        return x + self.fn(x)


class MetaSpikeFormer(nn.Module):
    """Meta-SpikeFormer with three convolutional and two attention stages.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        heads: Attention heads.
        num_classes: Classes K.
        v_threshold: Threshold of all neurons but those behind the attention products.

    Shape:
        `[T, B, 3, H, W]` -> `[T, B, K]`.
    """

    def __init__(
        self,
        dims: Sequence[int] = (32, 64, 128, 256, 360),
        depths: Sequence[int] = (1, 1, 2, 6, 2),
        heads: int = 8,
        num_classes: int = 1000,
        v_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        width = 3
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            # No neuron looks at the image.
            parts += [lif(v_threshold)] if i else []
            parts += [conv_bn(width, dim, 3 if i else 7, 2 if i < 4 else 1, bias=True)]
            for _ in range(depth):
                mixer = SepConv(dim, v_threshold) if i < 3 else SDSA3(dim, heads, v_threshold)
                mlp = (ChannelConv if i < 3 else ChannelMLP)(dim, v_threshold)
                parts += [Residual(mixer), Residual(mlp)]
            width = dim
        self.body = nn.Sequential(*parts)
        self.neuron = lif(v_threshold)
        self.head = layer.Linear(width, num_classes)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        """Return scores per step; `functional.reset_net` has to follow."""
        return self.head(self.neuron(self.body(x).mean((-2, -1))))

    def take_weights(self, ours: nn.Module) -> None:
        """Copy parameters and buffers of the equal model of this library, in their order."""
        theirs = self.state_dict()
        for mine, other in zip(theirs.values(), ours.state_dict().values(), strict=True):
            mine.copy_(other.view_as(mine))
