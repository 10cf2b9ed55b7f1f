"""Spikes on their way from neurons to those that read them."""

import torch
from torch import Tensor
from torch.fx import Node


class DelayLines:
    """One ring of instants for each pair of a layer of neurons and an operation that reads it.

    Args:
        longest: Longest delay, in ticks.
        seed: Of the delays.
    """

    def __init__(self, longest: int, seed: int) -> None:
        self.length = longest + 1
        self.generator = torch.Generator().manual_seed(seed)
        self.rings: dict[tuple[Node, Node], Tensor] = {}
        self.due = [False] * self.length

    @property
    def is_waiting(self) -> bool:
        """Whether any spike is under way."""
        return any(self.due)

    def arrives(self, tick: int) -> bool:
        """Whether any spike arrives at an instant."""
        return self.due[tick % self.length]

    def pass_by(self, tick: int) -> None:
        """Free the place of an instant for a later one."""
        self.due[tick % self.length] = False

    def send(self, line: tuple[Node, Node], spikes: Tensor, tick: int) -> None:
        """Give every spike a delay."""
        if line not in self.rings:
            self.rings[line] = spikes.new_zeros(self.length, *spikes.shape)
        (fired,) = spikes.flatten().nonzero(as_tuple=True)
        delays = torch.randint(self.length, fired.shape, generator=self.generator)
        places = (tick + delays.to(fired.device)) % self.length
        on_the_way = self.rings[line].view(self.length, -1)
        on_the_way.index_put_((places, fired), spikes.flatten()[fired], accumulate=True)
        for place in torch.unique(places).tolist():
            self.due[place] = True

    def take(self, line: tuple[Node, Node], tick: int) -> Tensor:
        """Return what arrives now, and take it off the line."""
        arriving = self.rings[line][tick % self.length]
        arrived = arriving.clone()
        arriving.zero_()
        return arrived
