"""Shortcuts: where the neurons stand relative to the sum.

Trunk([dict(mixer=Branch(LIF(), f))])    membrane: x + f(LIF(x))    potentials add
sew(Chain(f, LIF()), connect="add")      SEW:      x + LIF(f(x))    spikes add, giving integers
vanilla(f, LIF())                        vanilla:  LIF(x + f(x))    add, then fire
Residual(f, g)                           sum:      g(x) + f(x)      g resizes what f resizes
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spikeformers.errors import InputError
from spikeformers.layers.recompute import recompute, reversible, take_turns
from spikeformers.layers.synapse import Additive
from spikeformers.neurons import Neuron, Stateful


class Chain(nn.Sequential):
    """Synaptic layers and neurons in turn, each under its name: `Chain(neuron=LIF(), conv=...)`.

    Positional parts are named by their index.
    """

    def __init__(self, *parts: nn.Module, **named: nn.Module) -> None:
        super().__init__(*parts)
        for name, part in named.items():
            self.add_module(name, part)


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drop a whole branch for random samples: one mask per sample, shared by all steps.

    The surviving samples are scaled by `1 / (1 - rate)`, which keeps the mean.

    Args:
        x: Output of the branch, `[T, B, ...]`.
        rate: Probability of dropping, in [0, 1).

    Reference:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.
    """
    kept = torch.rand(x.shape[1], device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate)).view(1, -1, *[1] * (x.ndim - 2))


class Branch(Additive, nn.Module):
    """What a trunk adds to the membrane: a leading neuron, then a body that ends in a synapse.

    Args:
        neuron: Fires on the membrane of the trunk.
        fn: Turns its spikes into the current that is added.
    """

    def __init__(self, neuron: Neuron, fn: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """`fn(neuron(x))`, `[T, B, C, ...]` -> `[T, B, C, ...]`."""
        return self.fn(self.neuron(x))


class Blocks(nn.ModuleList):
    """Blocks of named parts, applied one after the other.

    Args:
        blocks: Each block maps names (`attn`, `mlp`, ...) to residual modules.
    """

    def __init__(self, blocks: Iterable[Mapping[str, nn.Module] | nn.ModuleDict]) -> None:
        super().__init__([nn.ModuleDict(dict(block.items())) for block in blocks])

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, ...]` -> `[T, B, C, ...]`."""
        for part in self.parts():
            x = part(x)
        return x

    def parts(self) -> Iterator[nn.Module]:
        """Return the parts of all blocks in the order in which they run."""
        for block in self:
            assert isinstance(block, nn.ModuleDict)
            yield from block.values()


class Trunk(Blocks):
    """The residual stream of membrane potentials: the only place that writes `x = x + f(x)`.

    Set `recomputes = True` to keep only the stream for the backward pass and run the branches
    again there (see `layers/recompute.py`).

    Args:
        blocks: Each block maps names to branches.
        drop_path: Probability of dropping a branch in training, one for all, one per block, or one
            per branch.
    """

    def __init__(
        self,
        blocks: Iterable[Mapping[str, Branch] | nn.ModuleDict],
        drop_path: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(blocks)
        rates = [drop_path] * len(self) if isinstance(drop_path, int | float) else list(drop_path)
        if len(rates) == len(self):
            rates = [
                rate for rate, block in zip(rates, self, strict=True) for _ in block.children()
            ]
        if len(rates) != len(list(self.parts())) or not all(0 <= rate < 1 for rate in rates):
            raise InputError(f"drop_path={drop_path}: expected {len(self)} probabilities in [0, 1)")
        self.drop_path_rates = rates
        self.recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        """Add every branch to the stream, `[T, B, C, ...]` -> `[T, B, C, ...]`."""
        for branch, rate in zip(self.parts(), self.drop_path_rates, strict=True):
            assert isinstance(branch, Branch)
            # A stream hands its state to one run only, so it cannot run a second time.
            again = self.recomputes and self.training and branch.neuron.carried is None
            y = recompute(branch, x) if again else branch(x)
            x = x + (drop_path(y, rate) if self.training and rate else y)
        return x


class Residual(Additive, nn.Module):
    """A body and its shortcut, added: `shortcut(x) + fn(x)`.

    Args:
        fn: The body.
        shortcut: Fits its input to a body that changes width or resolution; else the identity.

    Shape:
        `[T, B, C, H, W]` -> what both give.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385,
        eq. 1 and 2.
    """

    def __init__(self, fn: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.fn = fn
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body says to what went around it."""
        return self.shortcut(x) + self.fn(x)


class ReversibleTrunk(Blocks):
    """Two streams of membrane potentials that feed each other: `y1 = x1 + F(x2), y2 = x2 + G(y1)`.

    The inputs follow from the outputs, so in training no activation inside the trunk is kept for
    the backward pass: memory does not grow with depth (see `layers/recompute.py`).

    Args:
        blocks: Each block maps two names to branches: F, then G, without dropout.

    Shape:
        `[T, B, C, ...]` -> `[T, B, C, ...]`; the streams are the halves of the even `C` channels.

    Reference:
        Zhang and Zhang, "Memory-Efficient Reversible Spiking Neural Networks", AAAI 2024,
        arXiv:2312.07922.
    """

    def __init__(self, blocks: Iterable[Mapping[str, Branch] | nn.ModuleDict]) -> None:
        super().__init__(blocks)
        for block in self:
            assert isinstance(block, nn.ModuleDict)
            if len(block) != 2:
                raise InputError(f"blocks has one of {[*block]}: expected two branches, F and G")
        if any(isinstance(module, _DropoutNd) for module in self.modules()):
            raise InputError("blocks has dropout, whose mask the backward pass would draw anew")

    def forward(self, x: Tensor) -> Tensor:
        """Add every branch of one stream to the other, in turn."""
        if x.shape[2] % 2:
            raise InputError(f"x has {x.shape[2]} channels: two streams need an even number")
        branches = list(self.parts())
        # A stream hands its state to one run only, so it cannot run a second time.
        lent = any(isinstance(m, Stateful) and m.carried is not None for m in self.modules())
        if self.training and not lent:
            return reversible(branches, x)
        return take_turns(branches, x, x.dtype)


class TwiceCountingTrunk(ReversibleTrunk):
    """A reversible trunk whose running statistics move as if every batch came twice.

    The official code updates them in the forward pass and again when the backward pass runs the
    branches; a momentum of `1 - (1 - m)**2` has the same effect. It exists so that weights trained
    that way train on as they did there.
    """

    def __init__(self, blocks: Iterable[Mapping[str, Branch] | nn.ModuleDict]) -> None:
        super().__init__(blocks)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                module.momentum = 1 - (1 - module.momentum) ** 2


class Sew(nn.Module):
    """Spike-element-wise shortcut; see `sew`."""

    def __init__(self, fn: nn.Module, connect: str, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.fn = fn
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.connect = connect

    def forward(self, x: Tensor) -> Tensor:
        """Join the spikes of the body with the spikes that went around it."""
        y, x = self.fn(x), self.shortcut(x)
        if self.connect == "add":
            return x + y
        return x * y if self.connect == "and" else x * (1 - y)


def sew(fn: nn.Module, connect: str = "add", shortcut: nn.Module | None = None) -> Sew:
    """Join spikes with spikes: `add` gives integers, `and` and `iand` (`x AND NOT y`) stay binary.

    Args:
        fn: A body that ends in a neuron.
        connect: "add", "and" or "iand".
        shortcut: Ends in a neuron too; default: the identity.

    Reference:
        Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021,
        arXiv:2102.04159, table 1.
    """
    if connect not in ("add", "and", "iand"):
        raise InputError(f"connect={connect!r}: expected 'add', 'and' or 'iand'")
    return Sew(fn, connect, shortcut)


class Vanilla(Residual):
    """Add, then fire; see `vanilla`."""

    def __init__(self, fn: nn.Module, neuron: Neuron, shortcut: nn.Module | None) -> None:
        super().__init__(fn, shortcut)
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """`neuron(shortcut(x) + fn(x))`."""
        return self.neuron(super().forward(x))


def vanilla(fn: nn.Module, neuron: Neuron, shortcut: nn.Module | None = None) -> Vanilla:
    """Add the incoming spikes to the body's current, then fire, as a Spiking ResNet does.

    Args:
        fn: A body that ends in a synaptic layer.
        neuron: Fires on the sum.
        shortcut: Ends in a synaptic layer too; default: the identity.

    Reference:
        Zheng et al., "Going Deeper With Directly-Trained Larger SNNs", AAAI 2021,
        arXiv:2011.05280.
    """
    return Vanilla(fn, neuron, shortcut)
