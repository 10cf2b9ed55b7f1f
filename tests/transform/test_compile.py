"""The compiled twin computes what the model does."""

import pytest
import torch
import torch.nn.functional as F

from spikeformers.data import direct
from spikeformers.models import create_model
from spikeformers.ops import lif, show_to_inductor
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


def test_inductor_looks_into_the_neuron() -> None:
    """No opaque call is left in the code that Inductor writes, and the numbers are the same."""
    from torch._inductor.utils import run_and_get_code

    show_to_inductor()
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    decay = torch.tensor(0.4, dtype=torch.float64)

    def fire(x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        spikes, v = lif(x + 1, decay=decay, v_threshold=0.7)
        return (spikes * x.cos()).sum() + v.sum()

    results = []
    for function in (fire, torch.compile(fire)):
        inputs = [t.clone().requires_grad_() for t in (x, decay)]
        loss, code = run_and_get_code(function, *inputs)
        loss.backward()
        results.append((loss.detach(), *(t.grad for t in inputs)))
    assert code and "spikeformers.lif" not in "".join(code)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
