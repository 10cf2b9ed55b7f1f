"""`accelerate(model)`: the readable model, trained faster and in less memory.

A spiking network alternates two things: a synapse turns spikes into a current, and a norm, a
residual sum and a neuron turn currents into spikes. The readable model writes every tensor in
between to memory and keeps most of them for the backward pass. The twin that this file makes runs
norm, sum and neuron in one pass (`ops/norm_lif`), keeps spikes as bits and the membrane not at all,
and multiplies with spikes by adding the weights they select where few enough fire
(`ops/spike_conv`).

No graph is matched. The twin consists of the same modules in the same order; synapses, neurons and
trunks hand each other maps that are not computed yet (`_lazy.py`), and every other module gets an
ordinary tensor from them.
"""

import copy
import functools
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from spikeformers.errors import InputError
from spikeformers.layers import SSA, Conv, ConvBN, LinearBN, RepConv, ReversibleTrunk, Trunk
from spikeformers.layers.attention import matrix_product
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

log = logging.getLogger("spikeformers")


def accelerate(model: nn.Module, memory: str = "fast") -> nn.Module:
    """Return a twin of `model` that trains faster; it shares parameters, statistics and hooks.

    Names, state and results are those of the model, up to rounding; the twin has a training mode of
    its own. What has no fast form runs as it is, and is logged once.

    Args:
        model: Any module built with our layers and neurons.
        memory: What the backward pass finds of a current that spikes have made: "fast" keeps it,
            "low" keeps the spikes' bits and computes it again.

    Raises:
        InputError: If `memory` is neither.
    """
    if memory not in ("fast", "low"):
        raise InputError(f"memory={memory!r}: expected 'fast' or 'low'")
    slow = {
        type(m).__name__ for m in model.modules() if isinstance(m, Neuron) and not _fires_fast(m)
    }
    for name in sorted(slow):
        _log_once(f"{name} neurons have no fast form: they run as they are")
    return _twin(model, memory, {})


@functools.cache
def _log_once(line: str) -> None:
    log.info(line)


def _twin(module: nn.Module, memory: str, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a module with the same parameters, buffers and hooks, and twins for children."""
    if module not in twins:
        twin = twins[module] = copy.copy(module)
        twin._modules = {
            name: None if child is None else _twin(child, memory, twins)
            for name, child in module._modules.items()
        }
        cls: Any = type(module)
        twin.__class__ = _class_of_twin(cls)
        cast(_Part, twin).memory = memory
    return twins[module]


@functools.cache
def _class_of_twin(cls: Any) -> type[nn.Module]:
    # A subclass that computes something else has no fast form.
    fast = [_FAST[kind] for kind in _FAST if issubclass(cls, kind) and cls.forward is kind.forward]
    return type(cls.__name__, (_Twin, *fast[:1], cls), {"__module__": cls.__module__})


class _Part(nn.Module):
    """What a twin knows besides what its model knows: how much memory it may take."""

    memory: str


class _Twin(_Part):
    """A module among twins. Whoever hooks on to it sees ordinary tensors."""

    returns_tensors = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _is_hooked(self):
            args, kwargs = tree_map(dense, (args, kwargs))
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(*args, **kwargs)
        return tree_map(dense, y) if self.returns_tensors or _is_hooked(self) else y


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_hooked_inside(module: nn.Module) -> bool:
    return any(map(_is_hooked, module.children()))


class _FastConvBN(_Part, ConvBN):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        y, recipe = _convolved(x, self.conv)
        affine = Affine(y, [self.norm], self.conv.bias)
        return CurrentMap(y, _kept(y, recipe, self.memory), affine)


class _FastLinearBN(_Part, LinearBN):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        weight = self.linear.weight[..., None, None]
        y, recipe = _weighed(x, weight, Kernel(1, 0, 1))
        affine = Affine(y, [self.norm], self.linear.bias)
        return CurrentMap(y, _kept(y, recipe, self.memory), affine)


class _FastRepConv(_Part, RepConv):
    def forward(self, x: Tensor) -> Any:
        if not _is_map(x) or _is_hooked_inside(self):
            return super().forward(dense(x))
        y, again = _convolved(x, self.pointwise1)
        affine = Affine(y, [self.border_norm])
        border = self.border_norm.affine_map()[1].detach()
        weights = border, self.depthwise.weight, self.pointwise2.weight
        z = BorderedChain.apply(affine, again, y, *weights, *affine.parameters)

        def rebuild(*tensors: Tensor) -> Tensor:
            return bordered_chain(again.rebuild(*tensors[3:]), affine, *tensors[:3])

        recipe = _kept(z, Recipe(rebuild, (*weights, *again.tensors)), self.memory)
        return CurrentMap(z, recipe, Affine(z, [self.inner_norm, self.norm]))


class _FastConv(Conv):
    def forward(self, x: Tensor) -> Any:
        if not isinstance(x, SpikeMap) or self.bias is not None:
            return super().forward(dense(x))
        # Depthwise, so that computing it again costs little.
        return CurrentMap(*_convolved(x, self))


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
        if not _is_map(x) or not _fires_fast(self) or self.carried is not None:
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
                cast(_Twin, branch).returns_tensors = True
        elif isinstance(x, CurrentMap):
            x.is_stream = True
        return super().forward(x)


class _FastReversibleTrunk(ReversibleTrunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(dense(x))


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    ConvBN: _FastConvBN,
    LinearBN: _FastLinearBN,
    RepConv: _FastRepConv,
    Conv: _FastConv,
    SSA: _FastSSA,
    LIF: _FastLIF,
    Trunk: _FastTrunk,
    ReversibleTrunk: _FastReversibleTrunk,
}


def _fires_fast(neuron: Neuron) -> bool:
    """Whether a neuron is an LIF or IF neuron that learns neither its decay nor its threshold."""
    learns = any(True for _ in neuron.parameters())
    return isinstance(neuron, LIF) and type(neuron).fire is LIF.fire and not learns


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


def _convolved(x: Any, conv: nn.Conv2d) -> tuple[Tensor, Recipe]:
    """Convolve spikes or a map, without the bias."""
    kernel = Kernel(conv.stride[0], int(conv.padding[0]), conv.groups)
    return _weighed(x, conv.weight, kernel)


def _weighed(x: Any, weight: Tensor, kernel: Kernel) -> tuple[Tensor, Recipe]:
    """`[T, B, C, H, W]` as spikes or as a map -> `[T, B, C', H', W']`, and how to repeat it."""
    if is_static(x):
        y, once = _weighed(x[:1], weight, kernel)
        repeat = functools.partial(at_every_step, steps=len(x))
        return repeat(y), Recipe(lambda *kept: repeat(once.rebuild(*kept)), once.tensors)
    device = x.device.type
    # Spikes have the dtype that the current in front of them was rounded to.
    with _no_autocast(device):
        if isinstance(x, SpikeMap):
            return x.convolve(weight, kernel, _is_sparse(x, kernel))
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


def _kept(y: Tensor, recipe: Recipe, memory: str) -> Recipe:
    """Return what the backward pass keeps of a map that can be computed again from spikes."""
    return recipe if memory == "low" else Recipe.of(y)


def _is_sparse(x: SpikeMap, kernel: Kernel) -> bool:
    """Whether adding the weights that the spikes select is faster than multiplying with all.

    It is decided anew for each batch, by counting: the same spikes take the same way.
    """
    most = 0.25 if x.dtype.itemsize == 2 else 0.4
    return kernel.groups == 1 and firing_rate(x.bits, x.shape[2]) < most
