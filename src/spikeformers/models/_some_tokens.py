"""Run a block of a stream for some of its tokens only, as if the others were not there."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeformers.layers import BatchNorm, Blocks
from spikeformers.neurons import Neuron
from spikeformers.streaming import bind
from spikeformers.types import State


def each(blocks: Blocks) -> list[Blocks]:
    """Return every block as a short stream of its own."""
    return [cast(Blocks, blocks[i : i + 1]) for i in range(len(blocks))]


def run_masked(
    block: Blocks, y: Tensor, runs: Tensor, state: State, per_token: set[str]
) -> tuple[Tensor, State]:
    """Run a block on all tokens `[B, C, N, 1]`; those that do not run keep value and membrane."""
    with _norms_see(block, runs), bind(block, state) as after:
        new = block(y[None])[0]
    ran = {name: runs if name in per_token else runs.any(2, keepdim=True) for name in after}
    kept = {n: torch.where(ran[n], v, state.get(n, torch.zeros_like(v))) for n, v in after.items()}
    return torch.where(runs, new, y), kept


def run_gathered(
    block: Blocks, y: Tensor, runs: Tensor, state: State, per_token: set[str]
) -> tuple[Tensor, State]:
    """Run a block on the running tokens alone, sample by sample."""
    y = y.clone()
    state = {name: v.clone() for name, v in state.items()}
    for b in range(len(y)):
        chosen = runs[b, 0, :, 0].nonzero()[:, 0]
        if not len(chosen):
            continue
        own = {n: v[b : b + 1, :, chosen if n in per_token else [0]] for n, v in state.items()}
        with bind(block, own) as after:
            y[b][:, chosen] = block(y[None, b : b + 1, :, chosen])[0, 0]
        for name, v in after.items():
            width = y.shape[2] if name in per_token else 1
            whole = state.setdefault(name, v.new_zeros(len(y), v.shape[1], width, 1))
            whole[b][:, chosen if name in per_token else [0]] = v[0]
    return y, state


@contextmanager
def _norms_see(block: nn.Module, runs: Tensor) -> Iterator[None]:
    """Show the batch norms of a block the running tokens only; for all others they return 0.

    A neuron at or below its threshold stays silent without a current, so what does not run adds
    nothing to the sums of the attention.
    """
    rows = runs[:, 0, :, 0]  # [B, N]

    def pick(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        picked = args[0][..., 0].mT[rows]  # [M, C]
        # One value has no variance; two equal ones have variance 0.
        return (picked if len(picked) > 1 else picked.repeat(2, 1),)

    def put(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        whole = y.new_zeros(*rows.shape, y.shape[1])
        return whole.index_put((rows,), y[: int(rows.sum())]).mT[..., None]

    with ExitStack() as stack:
        for norm in (m for m in block.modules() if isinstance(m, BatchNorm)):
            stack.enter_context(norm.register_forward_pre_hook(pick))
            stack.enter_context(norm.register_forward_hook(put))
        yield


def membranes_of_tokens(block: Blocks, dim: int) -> set[str] | None:
    """Return the names of the states that each token has; the others belong to a whole sample.

    `None` if the block mixes neighbours, or if it is no block of tokens: once tokens are gathered,
    it would see others.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 1, dim, 4, 4, generator=generator, device="cpu", dtype=torch.float64)
    probe = copy.deepcopy(block).to_empty(device="cpu").double().train()
    for parameter in probe.parameters():
        # Factors that start tiny would hide what they scale.
        nn.init.ones_(parameter)
    for module in probe.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | BatchNorm):
            module.reset_parameters()
        if isinstance(module, Neuron):
            # A silent or saturated neuron would hide what reaches it.
            module.register_forward_hook(lambda _neuron, currents, _spikes: currents[0])
    try:
        with torch.no_grad():
            in_place = probe(tokens)
            with bind(probe, None) as after:
                in_a_row = probe(tokens.reshape(1, 1, dim, 16, 1))
    except RuntimeError:  # it takes maps of one shape, or shrinks them
        return None
    if not torch.allclose(in_place.flatten(3), in_a_row.flatten(3)):
        return None
    return {name for name, state in after.items() if state.shape[2] == 16}


def packed(state: State, block: int) -> State:
    """Name the states of a block so that they can be carried as this module's own."""
    return {f"{block}/{name.replace('.', '/')}": tensor for name, tensor in state.items()}


def unpacked(state: State, block: int) -> State:
    """Return the states of a block from among this module's own."""
    prefix = f"{block}/"
    return {
        name.removeprefix(prefix).replace("/", "."): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
