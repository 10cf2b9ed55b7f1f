"""Which native library is loaded, what happens without one, and how an installation gets it."""

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from spikeformers.errors import ConfigError
from spikeformers.ops import lif, native
from tests.helpers import randn
from tests.ops.levels import LIBRARIES

ROOT = Path(__file__).parents[2]
SITE_PACKAGES = Path(torch.__file__).parents[1]


def test_a_developer_has_native_kernels() -> None:
    assert LIBRARIES, native.WHY
    assert {"baseline", "neon"} & set(LIBRARIES)
    assert native._torch_parallel_for(), "PyTorch's threads are not used"


def test_every_kernel_is_in_the_library() -> None:
    assert len(native.kernels()) >= 10
    assert set(native.kernels().values()) == {native.level() or "PyTorch"}


def test_the_level_is_chosen_by_name() -> None:
    for level in LIBRARIES:
        library, why = native.load(level)
        assert library is not None and library.level == level
        assert why == f"SPIKEFORMERS_KERNELS={level}"
    assert native.load(None)[0].level == next(iter(LIBRARIES))
    assert native.load("off") == (None, "SPIKEFORMERS_KERNELS=off")
    missing = next(level for level in native.LEVELS if level not in LIBRARIES)
    library, why = native.load(missing)
    assert library is None and missing in why
    with pytest.raises(ConfigError, match=r"'avx1024': expected off or one of avx512, avx2"):
        native.load("avx1024")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    native._log_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="spikeformers")
    return caplog


def test_without_a_library_pytorch_serves_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    x, expected = 2 * randn(4, 3, 5), lif(2 * randn(4, 3, 5))
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "WHY", "no compiler")
    for _ in range(3):
        assert all(torch.equal(*pair) for pair in zip(lif(x), expected, strict=True))
    assert log.messages == ["no native kernel for anything (no compiler): PyTorch does it"]
    assert set(native.kernels().values()) == {"PyTorch"}


def test_what_a_kernel_cannot_do_is_logged_once(log: pytest.LogCaptureFixture) -> None:
    half = torch.zeros(2, 3, 4, dtype=torch.float16)
    thresholds = torch.ones(4)
    for _ in range(2):
        lif(half)
        lif(half.float(), v_threshold=thresholds)
    assert log.messages == [
        "no native kernel for torch.float16 on cpu: PyTorch does it",
        "no native kernel for decay or threshold per channel: PyTorch does it",
    ]


def test_a_library_that_lacks_a_kernel_is_too_old() -> None:
    kernel = native.Kernel("to_be_written_next_year")
    try:
        with pytest.raises(native.Unsupported, match="newer than the installed library"):
            kernel()
        assert native.kernels()["to_be_written_next_year"] == "PyTorch"
    finally:
        native.Kernel.known.remove(kernel)


def test_a_kernel_without_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = native.Kernel("lif_forward")
    native.Kernel.known.remove(kernel)
    monkeypatch.setitem(kernel._function_of, native.LIBRARY, lambda: 1)
    with pytest.raises(MemoryError, match="lif_forward"):
        kernel()


def test_eager_gradients_serve_where_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = 2 * randn(4, 3, 5), randn(4, 3, 5, seed=1)
    results = []
    for library in (native.LIBRARY, None):
        monkeypatch.setattr(native, "LIBRARY", library)
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(lif(leaf)[0], leaf, grad)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


CHECK = """
import torch
from spikeformers.ops import lif, native
x = torch.ones(4, 2, requires_grad=True)
lif(2 * x)[0].sum().backward()
print(native.LIBRARY, native.WHY, x.grad.abs().sum() > 0)
"""


def test_an_installation_without_a_compiler_works(tmp_path: Path) -> None:
    """Built as for a user, with a compiler that does not exist."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"CXX": "/nonexistent", "CC": "/nonexistent", "PYTHONPATH": ""}
    subprocess.run(
        [*build, "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(ROOT)],
        env=environment,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not any(name.endswith((".so", ".cpp", ".h")) for name in names)
    assert "spikeformers/ops/native.py" in names
    # Without `site` the editable installation of the developer stays out of sight.
    result = subprocess.run(
        [sys.executable, "-S", "-c", CHECK],
        env=environment | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{SITE_PACKAGES}"},
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.stdout.startswith("None avx512 was not built; avx2 was not built;")
    assert result.stdout.endswith("tensor(True)\n")
