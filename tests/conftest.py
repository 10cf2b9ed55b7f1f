"""What every test shares: one thread per process and, with `--check-shapes`, checked annotations.

Nothing of spikeformers is imported here, so that the import hook can be installed first.
"""

import sys

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--check-shapes",
        action="store_true",
        help="check the shape annotations of spikeformers at every call (leave out -m compile)",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if not config.getoption("--check-shapes"):
        return
    if "spikeformers" in sys.modules:
        raise pytest.UsageError("--check-shapes comes too late: spikeformers is imported already")
    import jaxtyping

    import tests.annotations  # noqa: F401 - the hook looks it up by name

    jaxtyping.install_import_hook("spikeformers", "tests.annotations.checked")
