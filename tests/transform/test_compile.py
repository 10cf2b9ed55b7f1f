"""The compiled twin computes what the model does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spikeformers.data import direct
from spikeformers.models import create_model
from spikeformers.ops import dsr, ilif, lif, show_to_inductor
from spikeformers.transform import compile_spiking

pytestmark = [
    pytest.mark.compile,
    pytest.mark.slow,
    # Inductor's own imports.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


def test_a_training_step_is_the_same() -> None:
    """Also the running statistics, which the compiled step has to update."""
    sizes = dict(dims=(8,), depths=(1,), strides=(2,), conv_stages=0, heads=2)
    torch.manual_seed(0)
    models = [
        create_model("meta_spikeformer", **sizes, num_classes=10, norm_gain=2.0).double()
        for _ in range(2)
    ]
    models[1].load_state_dict(models[0].state_dict())
    twins = models[0], compile_spiking(models[1])
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    for twin, model in zip(twins, models, strict=True):
        F.cross_entropy(model.readout(twin(direct(images, 2))), labels).backward()
    for (name, one), (_, two) in zip(*(m.state_dict().items() for m in models), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-12, msg=name)
    for (name, one), (_, two) in zip(*(m.named_parameters() for m in models), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=1e-12, msg=name)


def fire_lif(x: Tensor, decay: Tensor) -> Tensor:
    spikes, v = lif(x + 1, decay=decay, v_threshold=0.7)
    return (spikes * x.cos()).sum() + v.sum()


def fire_ilif(x: Tensor, factor: Tensor) -> Tensor:
    integers, v = ilif(factor * x + 1, v_threshold=0.3, rounding="half_up")
    return (integers * x.cos()).sum() + v.sum()


def fire_dsr(x: Tensor, v_threshold: Tensor) -> Tensor:
    y, v = dsr(x + 1, v_threshold=v_threshold, tau=1.0, dt=0.5)
    return (y * x.cos()).sum() + v.sum()


def test_what_was_compiled_before_does_not_hide_the_neurons() -> None:
    from torch._inductor.decomposition import select_decomp_table

    select_decomp_table()
    show_to_inductor()
    assert torch.ops.spikeformers.lif.default in select_decomp_table()


@pytest.mark.parametrize("fire", [fire_lif, fire_ilif, fire_dsr])
def test_inductor_looks_into_the_neuron(
    fire: Callable[[Tensor, Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No opaque call is left in the code that Inductor writes, and the numbers are the same."""
    from torch._inductor.utils import run_and_get_code

    show_to_inductor()
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    number = torch.tensor(0.4, dtype=torch.float64)

    results = []
    # What an earlier version compiled may still lie on the disk.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for function in (fire, torch.compile(fire)):
        inputs = [t.clone().requires_grad_() for t in (x, number)]
        loss, code = run_and_get_code(function, *inputs)
        loss.backward()
        results.append((loss.detach(), *(t.grad for t in inputs)))
    assert code and "torch.ops.spikeformers" not in "".join(code)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
