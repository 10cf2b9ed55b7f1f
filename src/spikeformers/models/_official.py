"""The authors' checkpoints: rename, reshape and check, in both directions.

An `Official` belongs to one file of one repository and maps its modules to ours. Parameters,
buffers and neurons follow their modules. Keys map one to one: whatever is left over on either side
is an error with both lists, unless it is declared dead.
"""

import fnmatch
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import CheckpointError, ConfigError, InputError
from spikeformers.models._backbone import Backbone
from spikeformers.models._registry import architecture_of, create_model, nearest
from spikeformers.neurons import Neuron


@dataclass(frozen=True)
class Dead:
    """Keys of the official checkpoint that its forward pass never uses.

    Args:
        reason: Why they are not ours.
        shapes: For a model of ours, every such key and the shape of its tensor.
        fill: Makes a tensor of that shape for the authors' class; zeros where any will do.
    """

    reason: str
    shapes: Callable[[nn.Module], Mapping[str, tuple[int, ...]]]
    fill: Callable[[tuple[int, ...]], Tensor] = torch.zeros


@dataclass(frozen=True)
class Official:
    """One official file and how its constructors, modules and tensors map to ours.

    Args:
        architecture: Our registered architecture.
        file: `owner/repository/path/to/file.py`.
        callables: Constructors in that file, each with the arguments that it fixes.
        arguments: Translates the constructor's arguments (with the authors' defaults) into ours. If
            it takes `corrected`, the official code has a defect that `corrected=True` repairs.
        ignored: Names of arguments that the constructor takes and does not use.
        modules: Their module path -> ours; `{i}` stands for an index.
        modules_of: Further ones for a model of ours, where their paths depend on its size.
        axes: Pattern of their keys -> number of axes of the tensor there, where it differs from
            ours by axes of length 1 (a 1x1 convolution against a linear map).
        dead: Pattern of their keys -> why they are not ours.
    """

    architecture: str
    file: str
    callables: Mapping[str, Mapping[str, Any]]
    arguments: Callable[..., Mapping[str, Any]]
    modules: Mapping[str, str]
    ignored: Sequence[str] = ()
    axes: Mapping[str, int] = field(default_factory=dict)
    dead: Mapping[str, Dead] = field(default_factory=dict)
    modules_of: Callable[[nn.Module], Mapping[str, str]] | None = None

    def sources(self) -> list[str]:
        """Return `file:callable` of every constructor."""
        return [f"{self.file}:{name}" for name in self.callables]

    def build(self, name: str, corrected: bool, given: Mapping[str, Any]) -> Backbone:
        """Make our model from the arguments of the official constructor."""
        parameters = inspect.signature(self.arguments).parameters
        known = [key for key in (*parameters, *self.ignored) if key != "corrected"]
        for key in given:
            if key not in known:
                raise ConfigError(f"{name} has no argument {key!r}{nearest(key, known)}")
        merged = {**self.callables[name], **given}
        used = {key: value for key, value in merged.items() if key not in self.ignored}
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in used:
                raise ConfigError(f"{name} needs the argument {key!r} of the official constructor")
        if "corrected" in parameters:
            used["corrected"] = corrected
        return create_model(self.architecture, **self.arguments(**used))

    def fitted(self, model: nn.Module) -> "Official":
        """Return the map for the size of this model."""
        if self.modules_of is None:
            return self
        return replace(self, modules={**self.modules, **self.modules_of(model)}, modules_of=None)

    def to_ours(self, key: str) -> str | None:
        """Return our name of their tensor or module, `None` if there is none."""
        return _translate(key, self.modules)

    def to_theirs(self, name: str) -> str | None:
        """Return their key of our tensor or module, `None` if there is none."""
        return _translate(name, {ours: theirs for theirs, ours in self.modules.items()})

    def shaped_like_theirs(self, key: str, tensor: Tensor) -> Tensor:
        """Give a tensor of ours the number of axes that it has in the official checkpoint."""
        for pattern, axes in self.axes.items():
            if fnmatch.fnmatchcase(key, pattern):
                kept = tensor.shape[:axes]
                return tensor.reshape(*kept, *[1] * (axes - len(kept)))
        return tensor

    def reason_dead(self, key: str) -> str | None:
        """Return why a key of theirs has no counterpart, `None` if it should have one."""
        for pattern, dead in self.dead.items():
            if fnmatch.fnmatchcase(key, pattern):
                return dead.reason
        return None


_OFFICIALS: list[Official] = []


def register_official(official: Official) -> None:
    """Make an official file known to `from_official`, `to_official` and `official_names`."""
    _OFFICIALS.append(official)


def join(outer: Mapping[str, str], inner: Mapping[str, str]) -> dict[str, str]:
    """Prefix every pair of `inner` by every pair of `outer`."""
    return {f"{a}.{c}": f"{b}.{d}" for a, b in outer.items() for c, d in inner.items()}


def _translate(name: str, modules: Mapping[str, str]) -> str | None:
    """Translate a module path, or a tensor name by its module's path, through patterns."""
    module, _, leaf = name.rpartition(".")
    for path, suffix in ((name, ""), (module, f".{leaf}")):
        if path in modules:
            return modules[path] + suffix
        for index in re.finditer(r"(?<=\.)\d+(?=\.|$)", path):
            pattern = f"{path[: index.start()]}{{i}}{path[index.end() :]}"
            if pattern in modules:
                return modules[pattern].replace("{i}", index.group()) + suffix
    return None


def _find(source: str) -> tuple[Official, str]:
    """Return the official file and callable that a (possibly shortened) source names."""
    matches = [
        (official, full.rpartition(":")[2])
        for official in _OFFICIALS
        for full in official.sources()
        if f"/{full}".endswith(f"/{source}")
        or full.endswith(f":{source}")
        or f"/{official.file}".endswith(f"/{source}")
    ]
    if len(matches) == 1:
        return matches[0]
    known = sorted(full for official in _OFFICIALS for full in official.sources())
    if not matches:
        raise ConfigError(f"unknown source {source!r}{nearest(source, known)}")
    candidates = ", ".join(f"{official.file}:{name}" for official, name in matches)
    raise ConfigError(f"source {source!r} is ambiguous: {candidates}")


def from_official(
    state_dict: Mapping[str, Any], source: str, corrected: bool = False, **kwargs: Any
) -> Backbone:
    """Build our model from an official checkpoint.

    Args:
        state_dict: Official key -> tensor or array.
        source: `owner/repository/file:callable`; a shorter suffix is accepted while unique, and the
            file alone where it has one constructor.
        corrected: Whether to repair a known defect of the official code (see the architecture's
            docstring). Without one it changes nothing.
        kwargs: Arguments of the official constructor. Those it ignored are ignored.

    Returns:
        The model in training mode, in the floating dtype of the checkpoint; `official_source` names
        where it came from.

    Raises:
        ConfigError: If the source is unknown or ambiguous, or an argument is unknown or missing.
        CheckpointError: If keys or shapes do not fit; each one is named.
    """
    official, name = _find(source)
    with torch.device("meta"):
        model = official.build(name, corrected, kwargs)
    official = official.fitted(model)
    expected = model.state_dict()
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in state_dict.items():
        ours = official.to_ours(key)
        tensor = torch.as_tensor(value)
        if ours is None or ours not in expected:
            if official.reason_dead(key) is None:
                problems.append(f"{key} has no counterpart")
            continue
        shape = official.shaped_like_theirs(key, expected[ours]).shape
        if tensor.shape != shape:
            problems.append(f"{key} has shape {list(tensor.shape)}, expected {list(shape)}")
        elif expected[ours].is_floating_point():
            found[ours] = tensor.detach().clone().reshape(expected[ours].shape)
        else:
            found[ours] = tensor.detach().to(expected[ours].dtype, copy=True)
    given = {official.to_ours(key) for key in state_dict}
    problems += [f"{official.to_theirs(k) or k} is missing" for k in expected if k not in given]
    if problems:
        raise CheckpointError(
            f"{len(problems)} keys do not fit {official.file}:{name}: {'; '.join(problems)}"
        )
    model.load_state_dict(found, assign=True)
    model.official_source = f"{official.file}:{name}"
    return model


def to_official(
    model: nn.Module,
    named_tensors: Mapping[str, Tensor] | None = None,
    dead: str = "omit",
    source: str | None = None,
) -> dict[str, Tensor]:
    """Return tensors of our model under the official keys and in the official shapes.

    Args:
        model: A model made by `create_model` or `from_official`.
        named_tensors: Any `{parameter or buffer name: tensor}`, for example gradients; a part of
            the names gives the keys that it covers. Default: the whole state dict.
        dead: "omit", or "zeros" to fill the keys that the official forward never uses, so that the
            result loads strictly into the authors' class. (A constant is filled with its value.)
        source: Where the names come from; default: see `official_names`.

    Raises:
        InputError: If a name is not one of the model's, or `dead` is neither word.
    """
    if dead not in ("omit", "zeros"):
        raise InputError(f"dead={dead!r}: expected 'omit' or 'zeros'")
    official = _source_of(model, source)
    state = model.state_dict()
    tensors = {}
    for name, tensor in (state if named_tensors is None else named_tensors).items():
        key = official.to_theirs(name)
        if name not in state or key is None:
            raise InputError(f"named_tensors has {name!r}, which is no tensor of the model")
        tensors[key] = official.shaped_like_theirs(key, tensor)
    if dead == "zeros":
        like = next(model.parameters())
        for entry in official.dead.values():
            for key, shape in entry.shapes(model).items():
                tensors[key] = entry.fill(shape).to(like)
    return tensors


def official_names(model: nn.Module, source: str | None = None) -> dict[str, str]:
    """Return `{our module path: official module path}`, neurons included.

    Args:
        model: A model made by `create_model` or `from_official`.
        source: Where the names come from. `None` is the source that the model was loaded from,
            else the only one that fits.

    Raises:
        ConfigError: If no source or more than one fits; the message lists the candidates.
    """
    official = _source_of(model, source)
    names = {path: official.to_theirs(path) for path, _ in model.named_modules()}
    return {path: name for path, name in names.items() if name is not None}


def _source_of(model: nn.Module, source: str | None) -> Official:
    source = source or getattr(model, "official_source", None)
    if source is not None:
        return _find(source)[0].fitted(model)
    family = [o.fitted(model) for o in _OFFICIALS if o.architecture == architecture_of(model)]
    fitting = [official for official in family if _fits(official, model)]
    if len(fitting) == 1:
        return fitting[0]
    candidates = ", ".join(o.file for o in fitting or family) or "none"
    raise ConfigError(f"source is needed: {len(fitting)} official files fit; known: {candidates}")


def _fits(official: Official, model: nn.Module) -> bool:
    neurons = [path for path, m in model.named_modules() if isinstance(m, Neuron)]
    names = [official.to_theirs(name) for name in (*model.state_dict(), *neurons)]
    return None not in names and len(set(names)) == len(names)
