"""Does a model run on a chip? `check(model, example, chip)` says what does not, layer by layer.

A chip is a TOML file in `chips/`: a title, and limits by name, each with its source. What no public
source says stays out of the file, and the check lists it as unchecked.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spikeformers.deploy.inventory import Operation, inventory
from spikeformers.errors import ConfigError
from spikeformers.types import ANALOG, Alphabet

__all__ = ["ChipReport", "Profile", "Violation", "check", "list_chips", "load_chip"]

WITHOUT_OPERATOR = {
    "encode": "feed events, which need no encoding",
    "synapse": "take another chip",
    "integer synapse": "add membranes instead of spikes, or expand the integers",
    "spike product": "mix tokens by trained weights, as STMixer does, or take a clocked chip",
    "integer product": "expand the integers, so that one side is binary",
    "mask": "mix tokens by trained weights, as STMixer does, or take a clocked chip",
    "multiply": "put a neuron in front of it",
    "membrane shortcut": "add spikes instead of membranes (sew), or leave the shortcut out",
    "spike shortcut": "leave the shortcut out",
    "sum": "let a linear layer of ones do it",
    "average": "let a strided convolution do it",
    "maximum": "let a strided convolution or an average pool do it",
    "neuron": "take another chip",
}
"""Operator that a chip lacks -> what to change."""

BEYOND_LIMIT = {
    "accumulator_bits": "use a smaller fan-in or weights of fewer bits, or accept saturation",
    "bias": "train without: layers without bias, norms without offset",
    "channels": "use fewer channels",
    "cores": "use fewer layers, or several chips",
    "input_size": "use smaller images, or a larger stride before it",
    "kernel": "use a smaller kernel",
    "leak": "use neurons without it: IF",
    "map_size": "use a larger stride",
    "neurons": "use fewer channels or smaller images, or several chips",
    "padding": "use a narrower border",
    "pool": "use another window, or a linear layer in its place",
    "readers": "let fewer layers read these neurons",
    "reset": "use neurons with another reset",
    "spike": "use neurons that emit 0 and 1, or expand the integers",
    "stride": "use another stride",
}
"""Limit -> what to change where a model exceeds it."""

LIMITS = {"operator", "weight_bits", *BEYOND_LIMIT}
WORDS: dict[str, set[Any]] = {
    "operator": set(WITHOUT_OPERATOR),
    "leak": {"none", "constant", "proportional"},
    "reset": {"zero", "subtract", "value"},
    "bias": {False, True},
}
"""Limit that is a list of words -> the words there are; all others are numbers."""


@dataclass(frozen=True)
class Limit:
    """What a chip can do in one respect.

    Attributes:
        value: The largest number, or the list of what is possible.
        source: Who says so.
    """

    value: Any
    source: str

    def allows(self, found: Any) -> bool:
        """Whether a model's number or word is within the limit."""
        return found in self.value if isinstance(self.value, list) else found <= self.value

    def __str__(self) -> str:
        """Write `at most 9` or the list."""
        if isinstance(self.value, list):
            return "only " + ", ".join(map(str, self.value))
        return f"at most {self.value:,}"


@dataclass(frozen=True)
class Profile:
    """What is publicly known of a chip.

    Attributes:
        name: Its file's.
        title: What people call it.
        limits: By name; a name that is absent is unknown.
    """

    name: str
    title: str
    limits: Mapping[str, Limit]


@dataclass(frozen=True)
class Violation:
    """One thing that keeps a model off a chip.

    Attributes:
        path: Module path, empty for the whole network.
        op: PyTorch's name of the operation, if it is one.
        limit: Name of the limit.
        found: What the model has.
        allowed: What the chip has.
        change: What to do about it.
    """

    path: str
    op: str
    limit: str
    found: Any
    allowed: str
    change: str

    def __str__(self) -> str:
        """Write what is wrong and what to change, without the place."""
        if self.limit == "operator":
            return f"the chip has no {self.found}: {self.change}"
        if isinstance(self.found, bool):
            return f"the chip has no {self.limit}: {self.change}"
        return f"{self.limit} is {self.found}, the chip has {self.allowed}: {self.change}"


@dataclass(frozen=True)
class ChipReport:
    """What a chip would have to do for a model, and what of it it cannot.

    Attributes:
        chip: The profile.
        operations: The inventory, in the order in which it runs.
        violations: What does not fit, in the same order; the whole network last.
        unchecked: Limits that no public source tells.
    """

    chip: Profile
    operations: tuple[Operation, ...]
    violations: tuple[Violation, ...]
    unchecked: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return "fits" or "does not fit", as far as the profile goes."""
        return "does not fit" if self.violations else "fits"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {"verdict": self.verdict, **asdict(self)}

    def __str__(self) -> str:
        """Write the inventory, then what does not fit, then the verdict."""
        lines = [_LINE.format(*_HEADS), *(_line(operation) for operation in self.operations)]
        lines.append(f"in all: {self._totals()}")
        for sentence in dict.fromkeys(map(str, self.violations)):
            lines.append(f"does not fit: {sentence}")
            lines += [f"    {v.path or '(model)'}" for v in self.violations if str(v) == sentence]
        if self.unchecked:
            lines.append(f"not checked, for no public source tells: {', '.join(self.unchecked)}")
        return "\n".join([*lines, f"verdict: {self.verdict} on {self.chip.title}"])

    def _totals(self) -> str:
        neurons = sum(operation.neurons for operation in self.operations)
        weights = sum(operation.weights for operation in self.operations)
        text = f"{weights:,} weights, {neurons:,} membranes"
        if bits := self.chip.limits.get("accumulator_bits"):
            text += f" ({math.ceil(neurons * bits.value / 8):,} bytes of {bits.value} bits)"
        return text


_HEADS = ("path", "operator", "operands", "fan-in", "connections", "weights", "bits", "neurons")
_LINE = "{:44}  {:17}  {:20}  {:>7}  {:>13}  {:>11}  {:>4}  {:>9}"


def _line(operation: Operation) -> str:
    bits = operation.accumulator_bits
    return _LINE.format(
        operation.path or "(model)",
        operation.operator,
        " x ".join(operation.operands),
        f"{operation.fan_in:,}",
        f"{operation.connections:,}",
        f"{operation.weights:,}",
        "" if bits is None else bits,
        f"{operation.neurons:,}",
    )


def list_chips() -> dict[str, str]:
    """Return the chips that are known by name, and what people call them."""
    files = sorted(_folder().iterdir(), key=lambda file: file.name)
    names = [file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")]
    return {name: load_chip(name).title for name in names}


def load_chip(name: str | Path) -> Profile:
    """Read a chip's profile.

    Args:
        name: One that `list_chips` names, or a TOML file.

    Raises:
        ConfigError: If there is no such chip, or its file is no profile.
    """
    is_file = Path(name).suffix == ".toml"
    file = Path(name) if is_file else _folder() / f"{name}.toml"
    if not file.is_file():
        known = [entry.name.removesuffix(".toml") for entry in _folder().iterdir()]
        raise ConfigError(f"chip {str(name)!r} is unknown{_nearest(str(name), known)}")
    try:
        facts = tomllib.loads(file.read_text("utf-8"))
        title = facts.pop("title")
        limits = {key: Limit(**limit) for key, limit in facts.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{name} is no chip ({error}): expected a title, and limits with value and source"
        ) from error
    for key, limit in limits.items():
        if key not in LIMITS:
            raise ConfigError(f"{name} has the limit {key!r}{_nearest(key, LIMITS)}")
        if not _is_sound(key, limit.value):
            expected = ", ".join(sorted(map(str, WORDS.get(key, {"a number of at least 1"}))))
            raise ConfigError(f"{name} has {key}={limit.value!r}: expected {expected}")
    return Profile(Path(name).stem, title, limits)


def _is_sound(key: str, value: Any) -> bool:
    if key in WORDS:
        return isinstance(value, list) and all(word in WORDS[key] for word in value)
    numbers = value if isinstance(value, list) and key != "weight_bits" else [value]
    return all(type(number) is int and number >= 1 for number in numbers)


def _folder() -> Any:
    return resources.files(__package__) / "chips"


def _nearest(word: str, known: Any) -> str:
    """Return near matches, or all there are."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.4) or sorted(known)
    return f": expected {' or '.join(map(repr, close))}"


def check(
    model: nn.Module, example: Tensor, chip: Profile | str, *, image: Alphabet | None = ANALOG
) -> ChipReport:
    """Compare what a model does with what a chip can do.

    The model itself is left alone: a folded eval copy is read, for one sample and one step.

    Args:
        model: Any module that takes one tensor; in any mode.
        example: An input of the shape to check, `[T, B, C, H, W]`.
        chip: A profile, or the name of one.
        image: The values that every input holds, as for `audit`; an analog image needs encoding.

    Raises:
        ConfigError: If there is no such chip.
        InputError: If the model cannot be exported.
    """
    chip = chip if isinstance(chip, Profile) else load_chip(chip)
    weight_bits = chip.limits["weight_bits"].value if "weight_bits" in chip.limits else 8
    operations = inventory(model, example, image=image, weight_bits=weight_bits)
    violations = (*_by_layer(operations, chip), *_of_the_whole(operations, chip))
    return ChipReport(chip, operations, violations, tuple(sorted(LIMITS - chip.limits.keys())))


def _by_layer(operations: tuple[Operation, ...], chip: Profile) -> Iterator[Violation]:
    for operation in operations:
        facts = {"operator": operation.operator, **operation.traits}
        for name, found in facts.items():
            if (limit := chip.limits.get(name)) and not limit.allows(found):
                change = WITHOUT_OPERATOR[found] if name == "operator" else BEYOND_LIMIT[name]
                yield Violation(operation.path, operation.op, name, found, str(limit), change)


def _of_the_whole(operations: tuple[Operation, ...], chip: Profile) -> Iterator[Violation]:
    """Compare sums: a layer of weights takes a core."""
    totals = {
        "cores": sum(operation.weights > 0 for operation in operations),
        "neurons": sum(operation.neurons for operation in operations),
    }
    for name, found in totals.items():
        if (limit := chip.limits.get(name)) and not limit.allows(found):
            yield Violation("", "", name, found, str(limit), BEYOND_LIMIT[name])
