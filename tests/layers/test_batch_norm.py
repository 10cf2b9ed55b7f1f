"""Our batch norm is PyTorch's on one process and equal to one process on several."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers import BatchNorm, RepConv
from tests.helpers import assert_same, randn, statistics

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 1, 4, 2)]


def theirs(shape: tuple[int, ...], **options: Any) -> nn.Module:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[len(shape)](shape[1], **options).double()


def step(norm: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Return output, gradients and statistics of one call."""
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    cotangent = randn(*x.shape, seed=77)
    grads = torch.autograd.grad((y * cotangent).sum(), [leaf, *norm.parameters()])
    return y, grads, statistics(norm)


@pytest.mark.parametrize(
    "options", [{}, dict(momentum=0.3, eps=1e-2), dict(momentum=None)], ids=str
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_pytorch(shape: tuple[int, ...], training: bool, options: dict[str, Any]) -> None:
    ours, reference = BatchNorm(3, **options).double(), theirs(shape, **options)
    with torch.no_grad():
        for norm in (ours, reference):
            norm.weight.copy_(randn(3, seed=1))
            norm.bias.copy_(randn(3, seed=2))
            norm.train(training)
    for seed in (3, 4):
        x = 1 + 2 * randn(*shape, seed=seed)
        for actual, expected in zip(step(ours, x), step(reference, x), strict=True):
            assert_same(actual, expected)
    assert list(ours.state_dict()) == list(reference.state_dict())


def test_its_affine_map_is_its_inference_form() -> None:
    norm = BatchNorm(3).double()
    norm(1 + 2 * randn(4, 3, 5, seed=1))
    x = randn(2, 3, 4, seed=2)
    gain, offset = norm.affine_map()
    assert_same(gain[:, None] * x + offset[:, None], norm.eval()(x))


def test_vectors_without_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[N, C, \.\.\.\], got shape \[3\]"):
        BatchNorm(3)(torch.zeros(3))


# Which samples of the global batch each of two ranks has.
SPLITS = [(3, 3), (1, 5), (4, 2)]


def global_batch(shape: tuple[int, ...]) -> Tensor:
    return 100 + 2 * randn(6, *shape[1:], seed=5)


def cases() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Return modules with fixed weights and the shapes of their inputs."""
    torch.manual_seed(0)
    norms = [(f"BatchNorm {shape}", BatchNorm(3, momentum=0.3), shape) for shape in SHAPES]
    modules = [*norms, ("RepConv", nn.Sequential(RepConv(3, 2)), (1, 2, 3, 4, 4))]
    return [(name, module.double(), shape) for name, module, shape in modules]


def two_steps(module: nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Any]:
    """Return outputs, gradients and statistics after two training steps."""
    leaf = x.clone().requires_grad_()
    outputs = [module(leaf), module(0.5 * leaf)]
    sum((y * cotangent[: len(y)]).sum() for y in outputs).backward()
    return dict(
        outputs=[y.detach() for y in outputs],
        grad=leaf.grad,
        parameters=[p.grad for p in module.parameters()],
        statistics=statistics(module),
    )


def cotangent_for(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = module.eval()(x)
    module.train()
    return randn(*y.shape, seed=6)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {}
    for counts in SPLITS:
        for name, module, shape in cases():
            x = global_batch(shape)
            cotangent = cotangent_for(module, x)
            own = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
            results[name, counts] = two_steps(module, x[own], cotangent[own])
    float32 = BatchNorm(3)
    results["float32"] = float32(global_batch((6, 3, 5)).float()[3 * rank :][:3])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Run everything on two processes once."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("counts", SPLITS, ids=str)
@pytest.mark.parametrize("case", range(len(SHAPES) + 1))
def test_two_processes_equal_one(
    case: int, counts: tuple[int, int], ranks: list[dict[Any, Any]]
) -> None:
    name, module, shape = cases()[case]
    x = global_batch(shape)
    expected = two_steps(module, x, cotangent_for(module, x))
    parts = [rank[name, counts] for rank in ranks]
    for i, output in enumerate(expected["outputs"]):
        assert_same(torch.cat([part["outputs"][i] for part in parts]), output)
    assert_same(torch.cat([part["grad"] for part in parts]), expected["grad"])
    for i, grad in enumerate(expected["parameters"]):
        assert_same(parts[0]["parameters"][i] + parts[1]["parameters"][i], grad)
    for part in parts:
        assert_same(part["statistics"], expected["statistics"])


@pytest.mark.slow
def test_two_processes_equal_one_in_single_precision(ranks: list[dict[Any, Any]]) -> None:
    """A mean of 100 and a deviation of 2 leave enough digits, because the sum is centred."""
    expected = BatchNorm(3)(global_batch((6, 3, 5)).float())
    actual = torch.cat([rank["float32"] for rank in ranks])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
