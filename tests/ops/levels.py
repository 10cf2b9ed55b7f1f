"""The native libraries side by side, for tests that compare them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from spikeformers.ops import native

LIBRARIES = {
    level: library for level in native.LEVELS if (library := native.load(level)[0]) is not None
}
"""Every level that was built and that this processor has, best first."""

DTYPES = native.DTYPES

SETTINGS = [(level, threads) for level in LIBRARIES for threads in (1, 3)]


@contextmanager
def natively(level: str, threads: int = 1) -> Iterator[None]:
    """Run the kernels of one level, and nothing else: falling back to PyTorch is an error."""

    def refuse(reason: str) -> None:
        raise AssertionError(f"fell back to PyTorch: {reason}")

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", LIBRARIES[level])
        patch.setattr(native, "_log_once", refuse)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def assert_same_bits(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], where: str) -> None:
    """Equal to the last bit, also in the sign of zero."""
    for i, (one, other) in enumerate(zip(results, expected, strict=True)):
        assert one.dtype == other.dtype and one.shape == other.shape, f"{where}, output {i}"
        ours, theirs = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
        assert torch.equal(ours, theirs), f"{where}, output {i}"


def misaligned(tensor: Tensor) -> Tensor:
    """Return a contiguous copy that begins one number behind the alignment of memory."""
    storage = tensor.new_empty(tensor.numel() + 1)
    return storage[1:].view(tensor.shape).copy_(tensor)
