"""`accelerate(model)`: the readable model, trained faster and in less memory.

A spiking network alternates two things: a synapse turns spikes into a current, and a norm, a
residual sum and a neuron turn currents into spikes. The readable model writes every tensor in
between to memory and keeps most of them for the backward pass. The twin that this file makes runs
norm, sum and neuron in one pass (`ops/norm_lif`), keeps spikes as bits and the membrane not at all,
and multiplies with spikes by adding the weights they select where few enough fire
(`ops/spike_conv`).

No graph is matched. The twin consists of the same modules in the same order; synapses, neurons and
trunks (`_layers.py`) hand each other maps that are not computed yet (`_lazy.py`), and every other
module gets an ordinary tensor from them.
"""

import copy
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn
from torch.utils._pytree import tree_map

from spikeformers.errors import InputError
from spikeformers.neurons import Neuron
from spikeformers.transform._layers import FAST, FastSynapse, Part, fires_fast, is_hooked
from spikeformers.transform._lazy import dense

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
        type(m).__name__ for m in model.modules() if isinstance(m, Neuron) and not fires_fast(m)
    }
    for name in sorted(slow):
        _log_once(f"{name} neurons have no fast form: they run as they are")
    twin = _twin(model, memory, {})
    cast(Part, twin).returns_tensors = True
    return twin


def which_add(twin: nn.Module) -> dict[str, bool]:
    """Return which synapses of a twin add weights instead of multiplying, as far as it is decided.

    The first batch of training decides it, by the firing rates. Both ways give the same up to
    rounding: to repeat a run to the bit, `let_add` has to restore them.
    """
    return {name: part.adds for name, part in _synapses(twin) if part.adds is not None}


def let_add(twin: nn.Module, adds: Mapping[str, bool]) -> None:
    """Decide it for these synapses of a twin, named as `which_add` names them."""
    for name, part in _synapses(twin):
        part.adds = adds.get(name, part.adds)


def _synapses(twin: nn.Module) -> Iterator[tuple[str, FastSynapse]]:
    return ((name, m) for name, m in twin.named_modules() if isinstance(m, FastSynapse))


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
        cast(Part, twin).memory = memory
    return twins[module]


@functools.cache
def _class_of_twin(cls: Any) -> type[nn.Module]:
    # A subclass that computes something else has no fast form.
    fast = [FAST[kind] for kind in FAST if issubclass(cls, kind) and cls.forward is kind.forward]
    return type(cls.__name__, (_Twin, *fast[:1], cls), {"__module__": cls.__module__})


class _Twin(Part):
    """Whoever hooks on to a module among twins sees ordinary tensors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_hooked(self):
            args, kwargs = tree_map(dense, (args, kwargs))
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(*args, **kwargs)
        return tree_map(dense, y) if self.returns_tensors or is_hooked(self) else y
