"""Every published full-size model: its keys fit, its parameters count, and it has a name."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import spikeformers as sf
from spikeformers.models._registry import architecture_of
from tests.golden import published, source

PUBLISHED = published()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@cache
def registered(architecture: str, in_channels: int) -> dict[str, int]:
    """Return how many parameters the stages of each registered size have; heads vary freely."""
    with torch.device("meta"):
        return {
            name: count(sf.create_model(name, num_classes=None, in_channels=in_channels))
            for name in sf.list_models(f"{architecture}_*")
            if not name.endswith("_tiny")
        }


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda e: f"{e['family']}-{e['name']}")
def test_published_size(entry: dict[str, Any]) -> None:
    shapes = dict(entry["state_dict"])
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model = sf.from_official(state, source(entry), **entry["kwargs"])
    alive = set(sf.to_official(model))
    # Buffers that nobody trains are no parameters; the authors' count has none either.
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    dead = sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if key not in alive and not key.endswith(buffers)
    )
    assert count(model) + dead == entry["param_count"]
    sizes = registered(architecture_of(model), model.in_channels)
    stages = count(model) - (0 if model.head is None else count(model.head))
    # A probe shows what an argument does to the size; nobody published such a model.
    is_probe = entry["name"].startswith("probe-")
    assert is_probe or stages in sizes.values(), (
        f"no registered size has {stages:,} parameters before its head"
    )
