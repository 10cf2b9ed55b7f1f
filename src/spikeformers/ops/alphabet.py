"""Which values an op's outputs can hold: declared beside its schema, read by the audit."""

from collections.abc import Callable
from typing import Any

from spikeformers.types import Alphabet

AlphabetRule = Callable[..., tuple[Alphabet | None, ...]]

OUTPUT_ALPHABETS: dict[str, AlphabetRule] = {}
"""Qualified op name -> a function of the op's arguments (non-tensor ones by their values)."""


def declare_alphabet(op: Any, rule: AlphabetRule) -> None:
    """Declare the output alphabets of a custom op; `rule` takes the op's own arguments."""
    OUTPUT_ALPHABETS[op.name()] = rule
