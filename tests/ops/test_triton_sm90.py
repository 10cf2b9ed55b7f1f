"""What can be said of the Triton kernels without a GPU: their numbers, and that they compile."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from spikeformers.ops import SURROGATES, gpu, native, triton_bits
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.lif import triton as lif_kernels
from spikeformers.ops.norm_lif import triton as norm_kernels

pytestmark = pytest.mark.compile

SHAPE = (2, 48, 128)  # time steps, rows, channels
NEURON = dict(v_reset=0.0, decay_input=True, detach_reset=True, surrogate="sigmoid", alpha=4.0)
OPS = [
    *("lif", "lif_backward", "norm_lif", "norm_lif_backward_", "norm_add"),
    *("channel_moments", "norm_backward", "norm_products"),
]


NO_TRITON = "there is no Triton: pip install 'spikeformers[gpu]'"


@pytest.mark.slow
def test_numbers_in_the_interpreter() -> None:
    numbers = Path(__file__).with_name("test_triton_numbers.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(numbers)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Kernels by name: compiled for an H100 or H200 instead of launched."""
    hopper = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    launch, kernels = JITFunction.run, {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert not warmup
        kernels[self.__name__] = launch(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", hopper)
    monkeypatch.setattr(JITFunction, "run", compile_only)
    return kernels


def lif_backward(x: Tensor, learns_parameters: bool = False, **options: Any) -> None:
    v, number = x[0].to(membrane_dtype(x)), x.new_zeros((), dtype=membrane_dtype(x))
    neuron = NEURON | options
    lif_kernels.lif_backward(
        x,
        v,
        x,
        v,
        number,
        number,
        *neuron.values(),
        strict=False,
        learns_parameters=learns_parameters,
    )


def run_every_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = torch.zeros(shape, dtype=dtype)
    vector = torch.zeros(shape[-1], dtype=membrane_dtype(y))
    neuron = (vector[0], vector[0], 0.0, True)
    lif_kernels.lif_forward(y, None, *neuron, strict=False)
    lif_backward(y)
    bits = triton_bits.pack(y)
    triton_bits.unpack(bits, shape[-1], dtype)
    norm_kernels.channel_moments(y)
    norm_kernels.norm_products(y, y)
    norm_kernels.norm_add(y, y, vector, vector)
    norm_kernels.norm_backward(y, y, vector, vector, vector)
    norm_kernels.norm_lif(y, y, vector, vector, *neuron, strict=False, keeps_stream=True)
    norm_kernels.norm_lif_backward_(y, y, bits, y, y, vector, vector, *neuron, True, "sigmoid", 4.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *[(SHAPE, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)],
        ((1, 1, 1), torch.float32),  # Triton compiles anew for sizes of 1
        ((18, 5, 3), torch.float16),  # more steps than a program keeps in registers
    ],
    ids=str,
)
def test_every_kernel_compiles_for_sm_90(
    shape: tuple[int, ...], dtype: torch.dtype, compiled: dict[str, Any]
) -> None:
    run_every_kernel(shape, dtype)
    assert sorted(compiled) == [
        "_backward",
        "_forward",
        "_moments_of_all",
        "_moments_of_parts",
        "_norm_add",
        "_norm_backward",
        "_norm_lif",
        "_norm_lif_backward",
        "_norm_products",
        "_pack",
        "_unpack",
    ]
    for name, kernel in compiled.items():
        assert kernel.asm["cubin"], name
        assert ".target sm_90" in kernel.asm["ptx"], name
        # Fused multiply-adds would round differently. CUDA's own float64 exponential has some.
        assert "fma." not in kernel.asm["ptx"] or dtype == torch.float64, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *(dict(surrogate=name, alpha=surrogate.alpha) for name, surrogate in SURROGATES.items()),
        dict(v_reset=None, detach_reset=False, learns_parameters=True),
        dict(v_reset=0.3, decay_input=False, learns_parameters=True),
    ],
    ids=str,
)
def test_every_form_of_the_neuron_compiles(
    options: dict[str, Any], compiled: dict[str, Any]
) -> None:
    lif_backward(torch.zeros(SHAPE), **options)
    assert compiled["_backward"].asm["cubin"]


def test_currents_are_moved_in_whole_vectors(compiled: dict[str, Any]) -> None:
    """16 bytes per thread and instruction: else the kernels cannot be as fast as a copy."""
    x = torch.zeros(SHAPE)
    lif_kernels.lif_forward(x, None, torch.tensor(0.5), torch.tensor(1.0), 0.0, True, False)
    lines = compiled["_forward"].asm["ptx"].splitlines()
    loads = [line for line in lines if "ld.global" in line and "v4.b32" in line]
    assert len(loads) == 1024 // 128 // 4
    stores = [line for line in lines if "st.global" in line]
    assert stores and all("v4.b32" in line for line in stores)


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_a_kernel_for_gpus(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"spikeformers::{op}", "CUDA")


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("hindrance", "reason"),
    [
        (lambda patch: patch.setenv("SPIKEFORMERS_KERNELS", "off"), "SPIKEFORMERS_KERNELS=off"),
        (lambda patch: patch.setattr(gpu, "has_triton", lambda: False), NO_TRITON),
    ],
    ids=["switched off", "no Triton"],
)
def test_what_triton_cannot_do_is_done_without_and_logged_once(
    hindrance: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    native._log_once.cache_clear()
    hindrance(monkeypatch)
    run = gpu.on_gpu("spikeformers.ops.lif.triton.lif_forward", double)
    with caplog.at_level(logging.WARNING, "spikeformers"):
        assert [run(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]
    (record,) = caplog.records
    assert f"no native kernel for this GPU ({reason})" in record.getMessage()
