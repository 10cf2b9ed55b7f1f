"""One job on many processes: alone, or under `torchrun` without any change to the recipe.

torchrun --nproc-per-node 2 -m spikeformers train digits
"""

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from spikeformers.errors import ConfigError
from spikeformers.layers import Blocks
from spikeformers.models import Backbone, Stage


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
        device: Where this process computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count == 1:
            return tensor
        summed = tensor.to(self.device)
        dist.all_reduce(summed)
        return summed.to(tensor.device)

    def wait(self) -> None:
        """Wait for all processes."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.total(torch.tensor(int(flag))))


def default_device(device: str | None = None) -> torch.device:
    """Return the named device; without a name a GPU if there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    # Builds without CUDA raise an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason}") from error


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, for the length of the block.

    An error leaves the block in the process that failed first. The others, which fail for lack of
    that one, end without a word.

    Args:
        device: For example "cpu"; default: a GPU for each process if there are any.

    Raises:
        ConfigError: If the processes cannot find each other or lack devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield Ranks(rank, count, _device_of_this_rank(device, count))
        return
    store = _meet(count)
    rank = int(os.environ["RANK"])
    try:
        where = _device_of_this_rank(device, count)
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
        yield Ranks(rank, count, where)
    except Exception:
        if _failed_first(store, rank):
            raise
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _device_of_this_rank(device: str | None, count: int) -> torch.device:
    wants_gpu = torch.cuda.is_available() and device in (None, "cuda")
    if count == 1 or not wants_gpu:
        return default_device(device)
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise ConfigError(
            f"this machine has {gpus} GPUs and runs more processes: "
            f"torchrun --nproc-per-node {gpus}, or --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _meet(count: int) -> Any:
    """Return the store through which the processes find each other."""
    where = ":".join(os.environ.get(key, "?") for key in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        store, _, _ = next(rendezvous("env://"))
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            raise ConfigError(
                f"port {os.environ.get('MASTER_PORT')} is in use by another program: choose a free "
                "one with MASTER_PORT, or let torchrun --standalone do so"
            ) from error
        raise ConfigError(f"the {count} processes did not meet at {where}: {reason}") from error
    return store


def _failed_first(store: Any, rank: int) -> bool:
    """Whether no other process has failed before this one."""
    try:
        first: bytes = store.compare_set("failed", "", str(rank))
        return first == str(rank).encode()
    except RuntimeError:  # the process that kept the store is gone, so it was first
        return False


# Buffers need no synchronising; PyTorch 2.13 gave the switch another name.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = next(k for k in ("forward_sync_buffers", "broadcast_buffers") if k in _NAMES)


class _Replicated(DistributedDataParallel):
    """A copy of the model in each process, with the gradients averaged over them."""

    def readout(self, y: Tensor) -> Tensor:
        """Read out as the model does."""
        return self.module.readout(y)  # type: ignore[no-any-return]


def replicate(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model to call in training: every process holds all weights (DDP).

    `BatchNorm` sums its statistics over the processes itself, so that they equal one process with
    the same global batch.
    """
    if ranks.count == 1:
        return model
    gpu = [ranks.device] if ranks.device.type == "cuda" else None
    options: dict[str, Any] = {_BUFFERS: False}
    return _Replicated(model, device_ids=gpu, **options)


def shard(model: Backbone, ranks: Ranks) -> None:
    """Split the weights over the processes, branch by branch (FSDP2); they meet when a part runs.

    Raises:
        ConfigError: If there is only one process.
    """
    if ranks.count == 1:
        raise ConfigError("train.sharded=true needs several processes: torchrun --nproc-per-node 8")
    # A trunk's stream is a view of nothing that is written in place, which is all FSDP warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for stage in model.stages:
        assert isinstance(stage, Stage) and isinstance(stage.blocks, Blocks)
        for part in stage.blocks.parts():
            fully_shard(part)
    fully_shard(model)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded in full; all processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, dist.tensor.DTensor) else tensor


def like(tensor: Tensor, template: Tensor) -> Tensor:
    """Return a whole tensor as the template is: its device, memory layout and sharding."""
    if isinstance(template, dist.tensor.DTensor):
        local = tensor.to(template.device)
        return dist.tensor.distribute_tensor(local, template.device_mesh, template.placements)
    # Fused optimisers rely on the layout of the parameter.
    return torch.empty_like(template).copy_(tensor)


def is_first_rank() -> bool:
    """Whether this process is alone or the first of its job: the one that prints."""
    return os.environ.get("RANK", "0") == "0"
