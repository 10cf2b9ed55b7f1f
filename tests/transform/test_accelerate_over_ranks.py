"""On two processes the accelerated twin takes the statistics of both, as the readable model."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeformers.layers import Branch, Chain, ConvBN, LinearBN, RepConv, Trunk
from spikeformers.neurons import LIF
from spikeformers.transform import accelerate
from tests.helpers import enliven, gradients, randn, statistics

OWN = slice(0, 1), slice(1, 4)
"""Which samples each process has: one of them more than the other."""


def network() -> nn.Module:
    torch.manual_seed(0)
    branch = Branch(LIF(), Chain(RepConv(6, 6), LIF(), LinearBN(6, 6, bias=True)))
    return enliven(nn.Sequential(ConvBN(3, 6, 3), Trunk([dict(a=branch)]), LIF())).train()


def two_steps(model: nn.Module, x: Tensor) -> None:
    y = model(x) + model(x.flip(-1))
    (y * randn(*y.shape, seed=1)).sum().backward()


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    readable, x = network(), randn(3, 4, 3, 7, 8, seed=2)[:, OWN[rank]]
    fast = copy.deepcopy(readable)
    two_steps(readable, x), two_steps(accelerate(fast), x)
    results = [dict(gradients=gradients(m), statistics=statistics(m)) for m in (readable, fast)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_and_statistics_are_the_same(tmp_path: Path) -> None:
    """Of gradients the sum over processes: that is what training takes."""
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in ("gradients", "statistics"):
        expected, actual = (
            {name: ranks[0][i][kind][name] + ranks[1][i][kind][name] for name in ranks[0][i][kind]}
            for i in range(2)
        )
        largest = max(value.abs().max().item() for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(
                actual[name], value, atol=1e-9 * max(1, largest), rtol=0, msg=name
            )
