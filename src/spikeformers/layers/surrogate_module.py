"""Surrogate modules: classifiers that read early maps in training, and shorten the gradient's way.

Deng et al., "Surrogate Module Learning: Reduce the Gradient Error Accumulation in Training Spiking
Neural Networks", ICML 2023.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from spikeformers.layers.heads import ClassificationHead
from spikeformers.layers.shortcut import Blocks, Chain, Residual
from spikeformers.layers.synapse import LinearBN
from spikeformers.types import Outputs


def time_mean(x: Tensor) -> Tensor:
    """Average the steps of each sample, `[T, B, ...]` -> `[1, B, ...]`."""
    return x.mean(0, keepdim=True)


def mixed_time_mean(x: Tensor) -> Tensor:
    """Average steps of different samples as the authors' code does, `[T, B, ...]` -> `[1, B, ...]`.

    It takes time-first axes for batch-first ones; at `T = 1` nothing changes. It exists so that
    training can go on from the authors' weights as it began.
    """
    steps, batch = x.shape[:2]
    return x.flatten(0, 1).unflatten(0, (batch, steps)).mean(1)[None]


class SurrogateModule(nn.Module):
    """A classifier without neurons that reads an early map, in training alone.

    Args:
        dim: Channels.
        encoders: The bodies of each encoder by name, without neurons.
        num_classes: Classes K.
        over_time: Takes the mean over time: `time_mean`.

    Shape:
        potentials `[T, B, C, H, W]` -> scores of one step, `[1, B, K]`.

    Reference:
        Deng et al., "Surrogate Module Learning: Reduce the Gradient Error Accumulation in Training
        Spiking Neural Networks", ICML 2023.
    """

    def __init__(
        self,
        dim: int,
        encoders: Iterable[Mapping[str, nn.Module]],
        num_classes: int,
        over_time: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.over_time = over_time
        self.proj = Chain(linear=LinearBN(dim, dim), gelu=nn.GELU())
        self.encoders = Blocks(
            {name: Residual(Chain(gelu=nn.GELU(), fn=fn)) for name, fn in bodies.items()}
            for bodies in encoders
        )
        self.head = ClassificationHead(dim, num_classes, nn.Identity)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Classify each sample once."""
        return self.head(self.encoders(self.proj(self.over_time(x))))


class SurrogateHead(ClassificationHead):
    """A classifier on the potentials of the last map, and the surrogate modules of earlier ones.

    Args:
        dim: Channels.
        num_classes: Classes K.
        surrogates: One module for each earlier map.
    """

    def __init__(self, dim: int, num_classes: int, surrogates: Iterable[nn.Module]) -> None:
        super().__init__(dim, num_classes, nn.Identity)
        self.surrogates = nn.ModuleList(surrogates)
