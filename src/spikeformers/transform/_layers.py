"""The fast layers: synapses and neurons that hand each other maps which are not computed yet.

Each computes what the readable layer of its name does, and falls back on it for everything that is
no map, and where somebody hooks on to its inside.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeformers.layers import SSA, Conv, ConvBN, LinearBN, RepConv, ReversibleTrunk, Trunk
from spikeformers.layers.attention import matrix_product
from spikeformers.layers.synapse import moments_over_ranks
from spikeformers.neurons import LIF, Neuron
from spikeformers.ops.bits import firing_rate
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.surrogate import SURROGATES
from spikeformers.transform._fire import Affine, Firing
from spikeformers.transform._lazy import CurrentMap, SpikeMap, dense
from spikeformers.transform._maps import Recipe, at_every_step, is_static
from spikeformers.transform._weigh import (
    BorderedChain,
    Kernel,
    MapConv,
    SpikeProduct,
    bordered_chain,
    convolve_map,
    spike_product,
)


class Part(nn.Module):
    """A module among twins.

    Attributes:
        memory: As `accelerate` takes it.
        returns_tensors: Whether it hands on ordinary tensors only.
    """

    memory: str
    returns_tensors = False


class FastSynapse(Part):
    """A synapse that can add the weights which spikes select, instead of multiplying with all.

    Attributes:
        adds: Whether that is faster; `None` until the first batch of training tells.
    """

    adds: bool | None = None

    def convolved(self, x: Any, conv: nn.Conv2d) -> tuple[Tensor, Recipe]:
        """Convolve spikes or a map, without the bias."""
        kernel = Kernel(conv.stride[0], int(conv.padding[0]), conv.groups)
        return self.weighed(x, conv.weight, kernel)

    def weighed(self, x: Any, weight: Tensor, kernel: Kernel) -> tuple[Tensor, Recipe]:
        """`[T, B, C, H, W]` as spikes or as a map -> `[T, B, C', H', W']`, and how to repeat it."""
        if is_static(x):
            y, once = self.weighed(x[:1], weight, kernel)
            repeat = functools.partial(at_every_step, steps=len(x))
            return repeat(y), Recipe(lambda *kept: repeat(once.rebuild(*kept)), once.tensors)
        if isinstance(x, SpikeMap):
            # Spikes have the dtype that the current in front of them was rounded to.
            with _no_autocast(x.device.type):
                return x.convolve(weight, kernel, kernel.groups == 1 and self.adds_for(x))
        return _convolved_map(x, weight, kernel)

    def adds_for(self, x: SpikeMap) -> bool:
        """Return `adds`; the first spikes in training decide it, on all processes together."""
        if self.adds is not None:
            return self.adds
        rate = firing_rate(x.bits, x.shape[2])
        most = 0.25 if x.dtype.itemsize == 2 else 0.4
        if self.training:
            own = torch.tensor([rate], device=x.device)
            self.adds = moments_over_ranks(own, torch.zeros_like(own), 1)[0].item() < most
            return self.adds
        return rate < most

    def kept(self, y: Tensor, recipe: Recipe) -> Recipe:
        """Return what the backward pass keeps of a map that can be computed again from spikes."""
        return recipe if self.memory == "low" else Recipe.of(y)


class _FastConvBN(FastSynapse, ConvBN):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        y, recipe = self.convolved(x, self.conv)
        affine = Affine(y, [self.norm], self.conv.bias)
        return CurrentMap(y, self.kept(y, recipe), affine)


class _FastLinearBN(FastSynapse, LinearBN):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        weight = self.linear.weight[..., None, None]
        y, recipe = self.weighed(x, weight, Kernel(1, 0, 1))
        affine = Affine(y, [self.norm], self.linear.bias)
        return CurrentMap(y, self.kept(y, recipe), affine)


class _FastRepConv(FastSynapse, RepConv):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        y, again = self.convolved(x, self.pointwise1)
        affine = Affine(y, [self.border_norm])
        border = self.border_norm.affine_map()[1].detach()
        weights = border, self.depthwise.weight, self.pointwise2.weight
        z = BorderedChain.apply(affine, again, y, *weights, *affine.parameters)

        def rebuild(*tensors: Tensor) -> Tensor:
            return bordered_chain(again.rebuild(*tensors[3:]), affine, *tensors[:3])

        recipe = self.kept(z, Recipe(rebuild, (*weights, *again.tensors)))
        return CurrentMap(z, recipe, Affine(z, [self.inner_norm, self.norm]))


class _FastConv(FastSynapse, Conv):
    def forward(self, x: Tensor) -> Any:
        if not isinstance(x, SpikeMap) or self.bias is not None:
            return super().forward(dense(x))
        # Depthwise, so that computing it again costs little.
        return CurrentMap(*self.convolved(x, self))


class _FastSSA(SSA):
    def attend(self, q: Any, k: Any, v: Any) -> Any:
        maps = q, k, v
        if self.product is not matrix_product or not all(isinstance(x, SpikeMap) for x in maps):
            return super().attend(q, k, v)
        operands = [tensor for x in maps for tensor in (x.ghost, x.bits)]
        y = SpikeProduct.apply(self.heads, self.scale, *operands)
        # Small matrices, so that computing it again costs little.
        rebuild = functools.partial(spike_product, self.heads, self.scale)
        return CurrentMap(y, Recipe(rebuild, tuple(operands)))


class _FastLIF(LIF):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or not fires_fast(self) or self.carried is not None:
            return super().forward(dense(x))
        wide = membrane_dtype(x)
        alpha = SURROGATES[self.surrogate].alpha if self.alpha is None else self.alpha
        firing = Firing(
            _number(self.decay, wide, x.device),
            _number(self.threshold, wide, x.device),
            self.v_reset,
            self.decay_input,
            self.strict,
            self.detach_reset,
            self.surrogate,
            alpha,
        )
        return (x if isinstance(x, CurrentMap) else CurrentMap(dense(x))).fire(firing)


class _FastTrunk(Trunk):
    def forward(self, x: Tensor) -> Any:
        if self.recomputes:
            x = dense(x)
            for branch in self.parts():
                cast(Part, branch).returns_tensors = True
        elif isinstance(x, CurrentMap):
            x.is_stream = True
        return super().forward(x)


class _FastReversibleTrunk(ReversibleTrunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(dense(x))


FAST: dict[type[nn.Module], type[nn.Module]] = {
    ConvBN: _FastConvBN,
    LinearBN: _FastLinearBN,
    RepConv: _FastRepConv,
    Conv: _FastConv,
    SSA: _FastSSA,
    LIF: _FastLIF,
    Trunk: _FastTrunk,
    ReversibleTrunk: _FastReversibleTrunk,
}
"""The fast form of each layer that has one."""


def fires_fast(neuron: Neuron) -> bool:
    """Whether a neuron is an LIF or IF neuron that learns neither its decay nor its threshold."""
    learns = any(True for _ in neuron.parameters())
    return isinstance(neuron, LIF) and type(neuron).fire is LIF.fire and not learns


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes into a module, or comes out of it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_hooked_inside(module: nn.Module) -> bool:
    return any(map(is_hooked, module.children()))


def _is_map(x: Any) -> bool:
    """Whether the kernels can work with an input."""
    if torch.compiler.is_compiling() or x.ndim != 5:
        return False
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    # PyTorch lacks convolutions for it.
    return not (device == "cpu" and dtype == torch.float16)


@functools.cache
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def _convolved_map(x: Any, weight: Tensor, kernel: Kernel) -> tuple[Tensor, Recipe]:
    device = x.device.type
    again = x.recipe if isinstance(x, CurrentMap) and x.affine is None else None
    x = dense(x)
    if torch.is_autocast_enabled(device) and x.dtype != torch.get_autocast_dtype(device):
        again, x = None, x.to(torch.get_autocast_dtype(device))
    again = Recipe.of(x) if again is None else again
    with _no_autocast(device):
        y = MapConv.apply(again, x, weight, kernel)

    def rebuild(weight: Tensor, *tensors: Tensor) -> Tensor:
        return convolve_map(again.rebuild(*tensors), weight, kernel)

    return y, Recipe(rebuild, (weight, *again.tensors))


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
