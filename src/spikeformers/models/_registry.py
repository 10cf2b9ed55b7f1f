"""Names of models and of their exchangeable parts.

    @register("meta_spikeformer", variants={"15m": dict(dims=...)})
    def meta_spikeformer(*, dims, neuron=LIF, ...): ...

    create_model("meta_spikeformer_15m", num_classes=10, neuron=partial(LIF, tau=4.0))

Overrides that are classes or functions are kept in checkpoints and recipes by name: `"LIF"`, or
`{"LIF": {"tau": 4.0}}` for the `partial` above.
"""

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from spikeformers import layers, neurons
from spikeformers.errors import ConfigError
from spikeformers.models._backbone import Backbone

Builder = Callable[..., Backbone]


@dataclass(frozen=True)
class ModelConfig:
    """What rebuilds a model: its registered name and the overrides, both as plain data."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_BUILDERS: dict[str, Builder] = {}
_VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {}
_PARTS: dict[str, Callable[..., Any]] = {
    name: part
    for room in (neurons, layers)
    for name, part in vars(room).items()
    if name in room.__all__ and callable(part)
}


def register(name: str, variants: Mapping[str, Mapping[str, Any]]) -> Callable[[Builder], Builder]:
    """Register an architecture under `name` and its sizes under `name_variant`."""

    def decorate(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        for variant, arguments in variants.items():
            _VARIANTS[f"{name}_{variant}"] = (name, arguments)
        return builder

    return decorate


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a part that lives in an architecture file, so that checkpoints can name it."""
    _PARTS[function.__name__] = function
    return function


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_VARIANTS, pattern))


def model_arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the arguments that a model takes.

    Raises:
        ConfigError: If there is no such model; the message has the nearest names.
    """
    architecture, _ = _VARIANTS.get(name, (name, {}))
    if architecture not in _BUILDERS:
        raise ConfigError(f"unknown model {name!r}{nearest(name, [*_VARIANTS, *_BUILDERS])}")
    return inspect.signature(_BUILDERS[architecture]).parameters


def create_model(name: str, **overrides: Any) -> Backbone:
    """Build a model by its registered name.

    Args:
        name: One of `list_models()`, or an architecture's own name with all sizes as overrides.
        overrides: Arguments of the architecture, for example `num_classes=10`,
            `neuron=partial(LIF, tau=4.0)`; parts may also be given by name.

    Returns:
        A model `[T, B, C, H, W]` -> per-step scores `[T, B, K]`, in training mode; its `config`
        rebuilds it.

    Raises:
        ConfigError: If the name or an override is unknown; the message has the nearest ones.
    """
    architecture, arguments = _VARIANTS.get(name, (name, {}))
    parameters = model_arguments(name)
    for key in overrides:
        if key not in parameters:
            raise ConfigError(f"{architecture} has no argument {key!r}{nearest(key, parameters)}")
    given = {**arguments, **overrides}
    required = [k for k, p in parameters.items() if p.default is p.empty and k not in given]
    if required:
        sizes = ", ".join(list_models(f"{architecture}_*")[:3])
        raise ConfigError(f"{name} needs the argument {required[0]!r}; or use a size: {sizes}, ...")
    model = _BUILDERS[architecture](**_resolved(given, parameters))
    model.config = ModelConfig(name, {k: describe(v) for k, v in overrides.items()})
    return model


def architecture_of(model: nn.Module) -> str:
    """Return the architecture's name of a model made by `create_model`."""
    config = getattr(model, "config", None)
    if config is None:
        raise ConfigError("the model was not made by create_model: it has no registered name")
    return _VARIANTS.get(config.name, (config.name, {}))[0]


def nearest(word: str, known: Any) -> str:
    """Return `; did you mean ...?` with near matches, or the list if there are none."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known are {', '.join(sorted(known)[:12])}"


def describe(value: Any) -> Any:
    """Write an override as plain data that JSON and YAML can hold; see `resolve`."""
    if isinstance(value, partial):
        if value.args:
            raise ConfigError(f"{value} has positional arguments: name them, so it can be saved")
        return {_name_of(value.func): {k: describe(v) for k, v in value.keywords.items()}}
    if callable(value):
        return _name_of(value)
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value


def resolve(value: Any) -> Any:
    """Turn the name of a part, or `{name: arguments}`, back into the part."""
    if isinstance(value, str):
        if value not in _PARTS:
            raise ConfigError(f"unknown part {value!r}{nearest(value, _PARTS)}")
        return _PARTS[value]
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, arguments),) = value.items()
        named = resolve(name)
        parameters = inspect.signature(named).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key in arguments:
            if key not in parameters and not takes_any:
                raise ConfigError(f"{name} has no argument {key!r}{nearest(key, parameters)}")
        return partial(named, **_resolved(arguments, parameters))
    if not callable(value):
        raise ConfigError(f"{value!r} is no part: give a class, its name, or {{name: arguments}}")
    return value


def _resolved(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Resolve those arguments whose default is a part."""
    return {
        key: resolve(value)
        if key in parameters
        and callable(parameters[key].default)
        and parameters[key].default is not inspect.Parameter.empty
        else value
        for key, value in arguments.items()
    }


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", repr(function))
    if _PARTS.get(name) is not function:
        raise ConfigError(
            f"{name} cannot be saved by name: use a part of spikeformers or register it with "
            "@spikeformers.models.part"
        )
    return name
