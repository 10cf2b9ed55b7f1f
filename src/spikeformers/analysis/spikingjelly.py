"""The only door to SpikingJelly: a network of its layers, as one that this library can read.

Its convolutions, norms and poolings are plain PyTorch around PyTorch's own layers, so they stay as
they are. What changes are its stateful modules, which an exported graph would freeze: neurons
become ours, and containers that call them step by step become chains that see all steps.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import InputError, MissingExtraError
from spikeformers.layers import PerStep
from spikeformers.neurons import IF, ILIF, LIF, PLIF, Neuron

__all__ = ["from_spikingjelly"]


def from_spikingjelly(model: nn.Module, example: Tensor) -> nn.Module:
    """Return the equal network, in eval mode, whose neurons are ours.

    It is meant for `audit` and `energy`: surrogate gradients are not taken over. Paths of modules
    stay as they are.

    Args:
        model: Any module of SpikingJelly's layers in multi-step mode. It is not changed.
        example: An input `[T, B, ...]`, on which both have to agree in float64.

    Raises:
        MissingExtraError: If SpikingJelly is not installed.
        InputError: If a stateful module has no equal here, or is in single-step mode outside of a
            container that calls it step by step; or if the two differ on the example, as where one
            neuron is called twice and its second call goes on where the first one stopped.
    """
    jelly = _import()
    # Membranes of an earlier call do not count; if they carry gradients they would not even copy.
    membranes = [v for v in jelly.base.memories(model) if isinstance(v, Tensor)]
    original = copy.deepcopy(model, {id(v): v.detach() for v in membranes}).eval()
    jelly.functional.reset_net(original)
    converted = _converted(copy.deepcopy(original), "", jelly, per_step=False)
    with torch.no_grad():
        expected = original.double()(example.double())
        got = copy.deepcopy(converted).double()(example.double())
    if not torch.allclose(got, expected, rtol=1e-9, atol=1e-9):
        raise InputError(
            "model answers differently after its neurons were exchanged: expected each neuron to "
            "be called once per forward pass, and no module to read a neuron's membrane"
        )
    return converted


def _import() -> ModuleType:
    try:
        from spikingjelly import activation_based
        from spikingjelly.activation_based import base, functional, layer, neuron  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("spikingjelly", "spikingjelly") from error
    return activation_based


def _converted(module: nn.Module, path: str, jelly: ModuleType, per_step: bool) -> nn.Module:
    """Return the form of a module that sees all steps; `per_step`: it was called for each one."""
    if isinstance(module, jelly.base.MemoryModule):
        return _converted_memory(module, path, jelly, per_step)
    is_stateful = any(isinstance(part, jelly.base.MemoryModule) for part in module.modules())
    if per_step and not is_stateful:
        return PerStep(module)
    steps_inside = _calls_per_step(module, jelly)
    if per_step or steps_inside:
        if not isinstance(module, nn.Sequential):
            raise InputError(
                f"{path} is {type(module).__name__}, called step by step with neurons inside: "
                "expected a neuron, nn.Sequential, or a module without neurons"
            )
        parts = module.named_children()
        return nn.Sequential(
            OrderedDict((n, _converted(m, f"{path}.{n}".strip("."), jelly, True)) for n, m in parts)
        )
    for name, child in module.named_children():
        setattr(module, name, _converted(child, f"{path}.{name}".strip("."), jelly, False))
    return module


def _calls_per_step(module: nn.Module, jelly: ModuleType) -> bool:
    if isinstance(module, jelly.layer.StepModeContainer):
        return bool(module.stateful and module.step_mode == "m")
    return isinstance(module, jelly.layer.MultiStepContainer)


def _converted_memory(module: Any, path: str, jelly: ModuleType, per_step: bool) -> nn.Module:
    """Return our equal of a stateful module."""
    name = type(module).__name__
    if type(module) in (jelly.layer.Dropout, jelly.layer.Dropout2d):
        return nn.Identity()
    make = {getattr(jelly.neuron, known): make for known, make in NEURONS.items()}.get(type(module))
    if make is None or not _fires(module, jelly):
        known = ", ".join(NEURONS)
        raise InputError(f"{path} is {name}, which has no equal here: expected one of {known}")
    if (module.step_mode == "s") != per_step:
        raise InputError(
            f"{path} ({name}) has step_mode={module.step_mode!r}: call "
            "functional.set_step_mode(model, 'm') first, and show the model [T, B, ...]"
        )
    return make(module)


def _fires(neuron: Any, jelly: ModuleType) -> bool:
    """Whether a neuron emits spikes, not the smooth function that stands for them in training."""
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0, 9.0])
    if isinstance(neuron, jelly.neuron.ILIFNode):
        return bool(neuron.surrogate_function.spiking)
    return torch.equal(neuron.surrogate_function(x), (x >= 0).float())


def _lif(neuron: Any) -> LIF:
    return LIF(neuron.tau, decay_input=neuron.decay_input, **_common(neuron))


def _plif(neuron: Any) -> PLIF:
    ours = PLIF(decay_input=neuron.decay_input, **_common(neuron))
    ours.w = neuron.w
    return ours


def _ilif(neuron: Any) -> ILIF:
    levels = neuron.surrogate_function.max_spike_count
    return ILIF(levels, decay=1 - 1 / neuron.tau, v_threshold=neuron.v_threshold)


def _common(neuron: Any) -> dict[str, Any]:
    return dict(v_threshold=neuron.v_threshold, v_reset=neuron.v_reset)


NEURONS: dict[str, Callable[[Any], Neuron]] = {
    "IFNode": lambda neuron: IF(**_common(neuron)),
    "LIFNode": _lif,
    "ParametricLIFNode": _plif,
    "ILIFNode": _ilif,
}
"""SpikingJelly's class -> our equal of an instance."""
