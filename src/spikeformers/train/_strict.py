"""Strict reading of nested plain data: nothing unknown, nothing missing, nothing mistyped."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from spikeformers.errors import ConfigError


def override(content: dict[str, Any], assignment: str, schema: Any) -> None:
    """Apply one `key.of.section=value` to nested plain data; the value is YAML.

    Raises:
        ConfigError: If the schema has no such key.
    """
    key, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigError(f"{assignment!r} is no override: write key=value, as train.epochs=10")
    *path, last = key.split(".")
    if path and content.get(path[0], "") is None:
        raise ConfigError(
            f"{path[0]} is null: give the whole section, {path[0]}={{key: value, ...}}"
        )
    section = content
    for name in path:
        section = section.get(name) if isinstance(section, dict) else None  # type: ignore[assignment]
    if not isinstance(section, dict) or (
        last not in section and path[:2] != ["model", "overrides"]
    ):
        raise ConfigError(f"there is no recipe key {key!r}{nearest(key, keys(schema))}")
    section[last] = yaml.safe_load(value)


def keys(section: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of a dataclass and of those inside it."""
    found = []
    for field in dataclasses.fields(section):
        kind = typing.get_type_hints(section)[field.name]
        inner = dataclasses.is_dataclass(kind)
        found += keys(kind, f"{prefix}{field.name}.") if inner else [f"{prefix}{field.name}"]
    return found


def parse(kind: Any, value: Any, path: str) -> Any:
    """Return nested plain data as a dataclass, a list or a plain value.

    Args:
        kind: The type, for example a dataclass.
        value: The data.
        path: Dotted key of the value, for messages.

    Raises:
        ConfigError: Names the key, what came and what was expected.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path or 'the recipe'} must be a section of keys, got {value!r}")
        hints = typing.get_type_hints(kind)
        dot = f"{path}." if path else ""
        for key in value:
            if key not in hints:
                raise ConfigError(f"there is no recipe key '{dot}{key}'{nearest(key, hints)}")
        for key in hints:
            if key not in value:
                raise ConfigError(f"the recipe lacks the key '{dot}{key}'")
        section: Any = kind
        return section(**{k: parse(hints[k], v, f"{dot}{k}") for k, v in value.items()})
    origin = typing.get_origin(kind) or kind
    if origin is list and isinstance(value, list):
        return [parse(typing.get_args(kind)[0], item, path) for item in value]
    if origin is float and type(value) is int:
        return float(value)
    if type(value) is not origin:
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if origin is float else ""
        raise ConfigError(f"{path}={value!r}: expected {origin.__name__}{hint}")
    return value


def nearest(word: str, known: Any) -> str:
    """Return `; did you mean ...?`, or the list where nothing is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}"
