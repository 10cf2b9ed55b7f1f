"""Importing torchvision, each time in a fresh process: an import happens once."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_imports_without_warnings():
    code = """
from spikeformers.data._torchvision import _torchvision
assert _torchvision() is _torchvision()
assert _torchvision().transforms.v2.RandAugment
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_imports_where_the_compiled_operators_do_not_load():
    code = """
import torch

def fail(path):
    raise OSError(f"{path} wants another PyTorch")

torch.ops.load_library = fail
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
from spikeformers.data._torchvision import _torchvision
hflip = _torchvision().transforms.v2.functional.hflip
assert hflip(torch.tensor([[[1, 2]]])).tolist() == [[[2, 1]]]
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (0, "")


def test_other_failures_are_not_hidden(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('CUDA mismatch')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from spikeformers.data._torchvision import _torchvision
_torchvision()
"""
    assert "RuntimeError: CUDA mismatch" in run(code).stderr
