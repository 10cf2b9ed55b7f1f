from collections.abc import Callable
from pathlib import Path

import pytest

from spikeformers.train import Recipe, load_recipe
from tests.train.small import SMALL, write_small_set


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    return write_small_set(tmp_path / "idx")


@pytest.fixture
def small(idx_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Return a function that makes a small recipe: `small("train.seed=1")`."""

    def make(*overrides: str) -> Recipe:
        where = [f"data.root={idx_folder}", f"out={tmp_path / 'run'}"]
        return load_recipe("mnist", [*SMALL, *where, *overrides])

    return make
