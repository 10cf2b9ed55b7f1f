"""On a GPU: ops and accelerated models equal the CPU, and no kernel is left out."""

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import spikeformers as sf
from spikeformers.ops import lif
from spikeformers.ops.bits import pack, unpack
from spikeformers.ops.lif.op import lif_op
from spikeformers.ops.native import _log_once
from spikeformers.ops.norm_lif import norm_lif
from spikeformers.transform import accelerate
from tests.helpers import assert_same, enliven, gradients, randn, random_spikes

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def nothing_falls_back(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    _log_once.cache_clear()
    with caplog.at_level(logging.WARNING, "spikeformers"):
        yield
    assert [r.getMessage() for r in caplog.records if "native kernel" in r.getMessage()] == []


@pytest.mark.parametrize("v_reset", [0.0, None, 0.3])
@pytest.mark.parametrize("learned", [False, True])
def test_lif_and_its_gradients_equal_the_cpu(learned: bool, v_reset: float | None) -> None:
    x, v0 = 2 * randn(5, 2, 3, 7, 5), randn(2, 3, 7, 5, seed=1)
    decay, v_threshold = torch.tensor([0.2, 0.5, 0.9]).double(), torch.tensor(0.7).double()
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).detach().requires_grad_() for t in (x, v0, decay, v_threshold)]
        for leaf in leaves[2:]:
            leaf.requires_grad_(learned)
        options = dict(decay=leaves[2], v_threshold=leaves[3], v_reset=v_reset)
        spikes, v = lif(leaves[0], leaves[1], detach_reset=not learned, **options)
        loss = (spikes * randn(*x.shape, seed=2).to(device)).sum() + v.square().sum()
        grads = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
        results.append([t.cpu() for t in (spikes, v, *grads)])
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[1], results[0])


def test_opcheck() -> None:
    x = randn(3, 2, 5, dtype=torch.float32).cuda()
    decay, v_threshold = torch.tensor(0.5).cuda(), torch.tensor(1.0).cuda()
    options = (0.0, True, True, "sigmoid", 4.0, False)
    torch.library.opcheck(lif_op, (x.requires_grad_(), None, decay, v_threshold, *options))
    x = x.detach()
    torch.library.opcheck(norm_lif, (x, x, None, None, decay, v_threshold, 0.0, True, False, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_map_equals_the_cpu(dtype: torch.dtype) -> None:
    x = 2 * randn(4, 8, 96, 56, 56, dtype=dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        view = x.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, x.shape[:2])
        spikes, v = lif(view.cuda(), decay=0.3, v_threshold=0.7)
        expected, expected_v = lif(view, decay=0.3, v_threshold=0.7)
        assert torch.equal(spikes.cpu(), expected)
        assert torch.equal(v.cpu(), expected_v)


def test_bits_travel() -> None:
    spikes = random_spikes(4, 1000, 200, rate=0.1)
    assert torch.equal(pack(spikes.cuda()).cpu(), pack(spikes))
    assert torch.equal(unpack(pack(spikes.cuda()), 200, torch.float64).cpu(), spikes)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(
    "name", ["meta_spikeformer_tiny", "sdt_tiny", "spikformer_tiny", "qkformer_tiny"]
)
def test_a_training_step_equals_the_readable_model(name: str, memory: str) -> None:
    model = enliven(sf.create_model(name)).cuda()
    other = copy.deepcopy(model)
    x = randn(3, 2, model.in_channels, *(model.image_size or (32, 48)), seed=1).cuda()

    def step(net: torch.nn.Module) -> Tensor:
        y = net(x)
        (y * randn(*y.shape, seed=2).cuda()).sum().backward()
        return y.detach()

    assert_same(step(accelerate(other, memory)), step(model))
    expected = gradients(model)
    largest = max(1, *(grad.abs().max().item() for grad in expected.values()))
    for path, grad in gradients(other).items():
        torch.testing.assert_close(grad, expected[path], atol=1e-9 * largest, rtol=0, msg=path)
