"""What several test files need: comparisons, random tensors, lively models, neurons in numpy."""

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spikeformers.layers import BatchNorm, LayerScale
from spikeformers.neurons import Neuron

TOLERANCE = 1e-9

Module = TypeVar("Module", bound=nn.Module)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers that depend on nothing but the arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def random_spikes(*shape: int, seed: int = 0, rate: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate).double()


def assert_same(actual: Any, expected: Any) -> None:
    """Equal up to rounding in float64."""
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def assert_spikes_close(
    name: str,
    spikes: Tensor,
    ref: Tensor,
    h: Tensor,
    v_threshold: float | Tensor,
    *,
    eps: float = 0.0,
    flips: int = 0,
) -> None:
    """Spikes `[T, ...]` equal the reference, but for `flips` ones with `|h - v_threshold| <= eps`.

    Args:
        name: Named in the failure, with the first step that differs.
        spikes: What is tested.
        ref: What it should be.
        h: The reference's membrane before the reset.
        v_threshold: The threshold, broadcastable to `h`.
        eps: How close to the threshold a flip is excused.
        flips: How many excused flips there are.
    """
    assert spikes.shape == ref.shape == h.shape, f"{name}: {spikes.shape}, {ref.shape}, {h.shape}"
    differs = spikes != ref
    excused = differs & ((h - v_threshold).abs() <= eps)
    wrong = (differs & ~excused).reshape(len(h), -1).sum(1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise AssertionError(f"{name}: {int(wrong[first])} wrong spikes, first at step {first}")
    found = int(excused.sum())
    assert found == flips, f"{name}: {found} flips at the threshold, the test says {flips}"


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of every parameter; fail where there is none."""
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing, f"no gradient reaches {missing}"
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def enliven(module: Module, seed: int = 0) -> Module:
    """Give every parameter and statistic a random value at which neurons fire, in float64."""
    module = module.double()
    counter = itertools.count(1000 * seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, BatchNorm):
                draw = [randn(part.num_features, seed=next(counter)) for _ in range(4)]
                part.weight.copy_(1.5 + 0.3 * draw[0])
                part.bias.copy_(1 + 0.5 * draw[1])
                part.running_mean.copy_(0.2 * draw[2])
                part.running_var.copy_(draw[3].abs() + 0.5)
            elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):
                fan_in = math.prod(part.weight.shape[1:])
                part.weight.copy_(
                    2 / math.sqrt(fan_in) * randn(*part.weight.shape, seed=next(counter))
                )
                if part.bias is not None:
                    part.bias.copy_(0.3 * randn(*part.bias.shape, seed=next(counter)))
            elif isinstance(part, LayerScale):
                part.gain.copy_(1 + 0.3 * randn(*part.gain.shape, seed=next(counter)))
    return module


def neurons_of(model: nn.Module) -> dict[str, Neuron]:
    return {path: m for path, m in model.named_modules() if isinstance(m, Neuron)}


def spikes_of(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Return what every neuron emits during `run()`, by module path."""
    recorded: dict[str, Tensor] = {}
    hooks = [
        neuron.register_forward_hook(
            lambda _module, _inputs, output, path=path: recorded.update({path: output.detach()})
        )
        for path, neuron in neurons_of(model).items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return recorded


def assert_lively(spikes: dict[str, Tensor]) -> None:
    """Every neuron fires sometimes and pauses sometimes: else a test would compare constants."""
    shares = {path: (s > s.min()).double().mean().item() for path, s in spikes.items()}
    dull = {path: share for path, share in shares.items() if not 0.001 < share < 0.999}
    assert spikes and not dull, f"these neurons are constant: {dull}"


def compositions(total: int) -> list[tuple[int, ...]]:
    """Return every way to cut `total` steps into chunks."""
    if total == 0:
        return [()]
    return [(n, *rest) for n in range(1, total + 1) for rest in compositions(total - n)]


def fire_in_numpy(
    x: np.ndarray,
    charge: Callable[[np.ndarray, np.ndarray], np.ndarray],
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    v0: np.ndarray | float | None = None,
    strict: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charge, fire, reset, as the reference page on neurons says: spikes, last membrane, all h."""
    v = np.full(x.shape[1:], v_reset or 0.0) if v0 is None else np.array(v0)
    spikes, charged = np.zeros_like(x), np.zeros_like(x)
    for t, current in enumerate(x):
        v = charge(v, current)
        charged[t] = v
        fired = v > v_threshold if strict else v >= v_threshold
        spikes[t] = fired
        v = np.where(fired, v - v_threshold if v_reset is None else v_reset, v)
    return spikes, v, charged


def leaky(
    tau: float, decay_input: bool = True, rest: float = 0.0
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the charging rule of a LIF neuron."""
    if decay_input:
        return lambda v, x: v + (x - (v - rest)) / tau
    return lambda v, x: v - (v - rest) / tau + x


def integrate(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Charge an IF neuron."""
    return v + x
