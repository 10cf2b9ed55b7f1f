"""Synaptic layers: convolutions and linear maps with their batch norms, and how they fold.

They accept `[T, B, C, ...]` and fold time into the batch themselves, so that no model has to.
Each knows its exact inference form: `fold()` merges norms and parallel or serial branches into one
convolution with bias.
"""

import copy
import functools
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformers.errors import InputError


@runtime_checkable
class Foldable(Protocol):
    """A layer that knows its exact inference form."""

    def fold(self) -> nn.Module:
        """Return the equal, simpler module for eval mode."""
        ...


class Additive:
    """Mark of a module that, besides its parts, only adds, copies, joins and averages.

    Where all its parts are linear, its output for a sum of inputs is the sum of its outputs;
    `transform.expand` relies on that.
    """


def fold(model: nn.Module) -> nn.Module:
    """Return an eval copy of `model` with every synaptic layer in its inference form.

    Batch norms and the branches of `RepConv` merge into single convolutions, constant scales into
    thresholds where that is exact. Outputs equal those of `model.eval()` up to rounding.

    Raises:
        InputError: If `model` is in training mode.
    """
    if model.training:
        raise InputError("fold needs a model in eval mode: call model.eval() first")
    dtypes = [p.dtype for p in model.parameters()]
    # Folding multiplies weights by weights: in float64 first, so that it rounds once.
    folded = _folded(copy.deepcopy(model).double() if dtypes else copy.deepcopy(model)).eval()
    return folded.to(functools.reduce(torch.promote_types, dtypes)) if dtypes else folded


def _folded(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    return module.fold() if isinstance(module, Foldable) else module


class PerStep(nn.Module):
    """Apply a stateless module to every step: `[T, B, ...]` -> `[T, B, ...]`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Fold time into the batch, apply, unfold."""
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Conv(nn.Conv2d):
    """A convolution over `[T, B, C, H, W]` without norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every step."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> "Conv":
        """Make one from kernel `[O, I/groups, k, k]` and bias `[O]`; default padding `k // 2`."""
        width, per_group, side, _ = weight.shape
        padding = side // 2 if padding is None else padding
        conv = cls(per_group * groups, width, side, stride, padding, groups=groups, device="meta")
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return conv


class Linear(nn.Linear):
    """A linear map over channels, the same at every position of `[T, B, C, ...]`, without norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Map every step."""
        return self.over_channels(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def over_channels(self, x: Tensor) -> Tensor:
        """Map `[N, C, ...]`, as a convolution so that the channels stay where they are."""
        if x.ndim == 2:
            return super().forward(x)
        y = F.conv1d(x.flatten(2), self.weight[:, :, None], self.bias)
        return y.unflatten(2, x.shape[2:])

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "Linear":
        """Make one from its weight `[O, I]` and bias `[O]`."""
        linear = cls(weight.shape[1], weight.shape[0], device="meta")
        linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        return linear


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum that all ranks use is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:  # noqa: ARG004
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def moments_over_ranks(
    mean: Tensor, var: Tensor, count: int
) -> tuple[Tensor, Tensor, float | Tensor]:
    """Return mean, (biased) variance and count of all processes, given those of this one.

    The way back is differentiable; on one process nothing changes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return mean, var, count
    own = torch.full((1,), count, dtype=mean.dtype, device=mean.device)
    total = _SumOverRanks.apply(torch.cat([mean * count, own]))
    common, total = total[:-1] / total[-1].detach(), total[-1].detach()
    squares = _SumOverRanks.apply(count * (var + (mean - common).square()))
    return common, squares / total, total


class BatchNorm(_BatchNorm):
    """Batch norm over all axes but the second, with the statistics of the global batch.

    On one process it is PyTorch's. Under `torch.distributed`, count, sum and centred sum of squares
    are reduced through differentiable collectives, so that ranks together equal one process with
    the same global batch, on every backend.

    Shape:
        `[N, C, ...]` -> `[N, C, ...]`; inside a synaptic layer `N = T*B`.

    Reference:
        Ioffe and Szegedy, ICML 2015, arXiv:1502.03167.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise InputError(f"batch norm expects [N, C, ...], got shape {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training mode update the running statistics."""
        if self.training and dist.is_available() and dist.is_initialized():
            return self._normalise_over_ranks(input)
        return super().forward(input)

    def _normalise_over_ranks(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        channels = [1, -1, *[1] * (x.ndim - 2)]
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, axes, correction=0)
        mean, var, count = moments_over_ranks(mean, var, x.numel() // x.shape[1])
        self.observe(mean, var, count)
        y = (wide - mean.view(channels)) * torch.rsqrt(var + self.eps).view(channels)
        return (y * self.weight.view(channels) + self.bias.view(channels)).to(x.dtype)

    @torch.no_grad()
    def observe(self, mean: Tensor, var: Tensor, count: float | Tensor) -> None:
        """Move the running statistics towards the (biased) moments `[C]` of `count` values."""
        self.num_batches_tracked.add_(1)
        # One value per channel has no variance; the running one then learns that it is 0.
        unbiased = var * (count / max(float(count) - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """Return gain and offset `[C]` of the inference form `y = gain x + offset`."""
        gain = self.weight / torch.sqrt(self.running_var + self.eps)
        return gain, self.bias - self.running_mean * gain

    def surround(self, y: Tensor) -> Tensor:
        """Surround `[N, C, H, W]` by one pixel of this norm's image of zero.

        It comes from the running statistics, in training mode too, and carries no gradient.
        """
        image_of_zero = self.affine_map()[1].detach().to(y.dtype)
        frame = F.pad(y.new_zeros(y.shape[-2:]), (1, 1, 1, 1), value=1.0)
        return F.pad(y, (1, 1, 1, 1)) + frame * image_of_zero.view(1, -1, 1, 1)


class Synapse(nn.Module):
    """A linear map followed by a batch norm: what turns spikes into the next neuron's current.

    Subclasses implement `weigh` (the map, time already folded into the batch) and `fold`.
    """

    norm: BatchNorm

    def weigh(self, x: Tensor) -> Tensor:
        """Return the current before the last norm, `[T*B, C, ...]` -> `[T*B, C', ...]`."""
        raise NotImplementedError

    def fold(self) -> nn.Module:
        """Return the single convolution that equals this layer in eval mode."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, ...]` -> `[T, B, C', ...]`."""
        return self.norm(self.weigh(x.flatten(0, 1))).unflatten(0, x.shape[:2])


class ConvBN(Synapse):
    """Convolution and batch norm; the default zero padding keeps the size at stride 1.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        kernel_size: Side of the kernel; odd, unless a padding is given.
        stride: Step of the kernel.
        groups: Number of blocked connections from input to output channels.
        bias: Whether the convolution has a bias (the norm makes it redundant; some papers have it).
        padding: Rows and columns of zeros on each side; default: half of the kernel.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, out_channels, ceil(H/stride), ceil(W/stride)]` with
        the default padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 and padding is None:
            raise InputError(f"kernel_size={kernel_size}: expected an odd number, or a padding")
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias
        )
        self.norm = BatchNorm(out_channels)

    def weigh(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)

    def fold(self) -> Conv:
        """Scale the kernel by the norm's gain; its offset becomes the bias."""
        gain, offset = self.norm.affine_map()
        bias = offset if self.conv.bias is None else offset + gain * self.conv.bias
        weight = self.conv.weight * gain.view(-1, 1, 1, 1)
        stride, padding = self.conv.stride[0], int(self.conv.padding[0])
        return Conv.of(weight, bias, stride, self.conv.groups, padding)


class LinearBN(Synapse):
    """A linear map over channels, the same at every position, and batch norm.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        bias: Whether the linear map has a bias.

    Shape:
        `[T, B, in_channels, ...]` -> `[T, B, out_channels, ...]`.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.linear = Linear(in_channels, out_channels, bias=bias)
        self.norm = BatchNorm(out_channels)

    def weigh(self, x: Tensor) -> Tensor:
        """Apply the map at every position."""
        return self.linear.over_channels(x)

    def fold(self) -> Linear:
        """Scale the weights by the norm's gain; its offset becomes the bias."""
        gain, offset = self.norm.affine_map()
        bias = offset if self.linear.bias is None else offset + gain * self.linear.bias
        return Linear.of(self.linear.weight * gain[:, None], bias)


biased_linear = functools.partial(LinearBN, bias=True)
"""A linear map with a bias, which its batch norm makes redundant; many papers have one."""


class RepConv(Synapse):
    """Re-parameterised 3x3 convolution: 1x1, norm, depthwise 3x3, 1x1, norm, norm.

    There is no neuron inside, so the chain equals one dense, zero-padded 3x3 convolution with bias;
    only in that folded form does it see spikes alone. For the equality to hold at the border, the
    depthwise convolution is padded with the values to which the first norm maps zero.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, out_channels, H, W]`.

    Deviations:
        As in the official code, the border always comes from the *running* statistics (in training
        mode those that the same forward pass has just updated) and carries no gradient.

    Reference:
        Yao et al., "Spike-driven Transformer V2", ICLR 2024, arXiv:2404.03663, sec. 3.2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pointwise1 = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.border_norm = BatchNorm(in_channels)
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False)
        self.pointwise2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.inner_norm = BatchNorm(out_channels)
        self.norm = BatchNorm(out_channels)

    def weigh(self, x: Tensor) -> Tensor:
        """Run the branch up to the outer norm."""
        y = self.border_norm.surround(self.border_norm(self.pointwise1(x)))
        return self.inner_norm(self.pointwise2(self.depthwise(y)))

    def fold(self) -> Conv:
        """Multiply the chain out into one 3x3 kernel `[O, I, 3, 3]` and bias."""
        gain1, offset1 = self.border_norm.affine_map()
        gain2, offset2 = self.inner_norm.affine_map()
        gain3, offset3 = self.norm.affine_map()
        first = self.pointwise1.weight[:, :, 0, 0] * gain1[:, None]  # [M, I]
        spread = self.depthwise.weight[:, 0]  # [M, 3, 3]
        last = self.pointwise2.weight[:, :, 0, 0] * (gain2 * gain3)[:, None]  # [O, M]
        kernel = torch.einsum("om,mhw,mi->oihw", last, spread, first)
        bias = last @ (spread.sum((1, 2)) * offset1) + gain3 * offset2 + offset3
        return Conv.of(kernel, bias)


class NormFirstRepConv(Synapse):
    """Re-parameterised 3x3 convolution that starts with a norm: norm, 1x1, depthwise 3x3, norm.

    Like `RepConv` it equals one dense 3x3 convolution, and its border is as there.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.

    Shape:
        `[T, B, in_channels, H, W]` -> `[T, B, out_channels, H, W]`.

    Reference:
        Luo et al., ECCV 2024, arXiv:2407.20708, sec. 4.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.border_norm = BatchNorm(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.depthwise = nn.Conv2d(out_channels, out_channels, 3, groups=out_channels, bias=False)
        self.norm = BatchNorm(out_channels)

    def weigh(self, x: Tensor) -> Tensor:
        """Run the branch up to the outer norm."""
        y = self.border_norm.surround(self.border_norm(x))
        return self.depthwise(self.pointwise(y))

    def fold(self) -> Conv:
        """Multiply the chain out into one 3x3 kernel `[O, I, 3, 3]` and bias."""
        gain1, offset1 = self.border_norm.affine_map()
        gain2, offset2 = self.norm.affine_map()
        mix = self.pointwise.weight[:, :, 0, 0]  # [O, I]
        spread = self.depthwise.weight[:, 0] * gain2[:, None, None]  # [O, 3, 3]
        kernel = torch.einsum("ohw,oi->oihw", spread, mix * gain1)
        return Conv.of(kernel, spread.sum((1, 2)) * (mix @ offset1) + offset2)


class Once(nn.Module):
    """Run a stem on one step and repeat its output; see `once`."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, ...]` with equal steps -> `[T, B, ...]`."""
        first = x[:1]
        looks = not torch.compiler.is_compiling() and len(x) > 1
        if looks and not torch.equal(x, first.expand_as(x)):
            raise InputError("once() needs a static input, but the time steps of x differ")
        y = self.stem(first)
        return y.expand(len(x), *y.shape[1:])


def once(stem: nn.Module) -> Once:
    """Compute the stem of a static image once instead of at every step.

    Batch statistics then see `B` images instead of `T*B`, as in the papers that do this.

    Args:
        stem: A module without neurons.

    Raises:
        InputError: When run, if the steps of the input differ.
    """
    return Once(stem)
