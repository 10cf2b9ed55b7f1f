"""Heads: from the last feature map to per-step outputs."""

from collections.abc import Callable

from torch import Tensor, nn

from spikeformers.neurons import LIF
from spikeformers.types import Outputs


class ClassificationHead(nn.Module):
    """Spatial mean of the membrane, neuron, linear classifier; one score vector per step.

    Args:
        dim: Channels.
        num_classes: Classes K.
        neuron: Makes the neuron, so that the classifier sees spikes; `nn.Identity` where the map
            holds spikes already.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.
    """

    def __init__(self, dim: int, num_classes: int, neuron: Callable[[], nn.Module] = LIF) -> None:
        super().__init__()
        self.neuron = neuron()
        self.linear = _classifier(dim, num_classes)

    def spikes(self, x: Tensor) -> Tensor:
        """Return what the classifier sees, `[T, B, C]`."""
        return self.neuron(x.mean((-2, -1)))

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Classify every step."""
        return self.linear(self.spikes(x))


class DistillationHead(ClassificationHead):
    """Two classifiers on the same spikes, one for the labels, one for a teacher.

    In training it returns `Outputs(logits, aux={"kd": ...})`, in eval mode the mean of both.

    Args:
        dim: Channels.
        num_classes: Classes K.
        neuron: Makes the neuron.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.

    Reference:
        Touvron et al., "Training data-efficient image transformers", ICML 2021, arXiv:2012.12877.
    """

    def __init__(self, dim: int, num_classes: int, neuron: Callable[[], nn.Module] = LIF) -> None:
        super().__init__(dim, num_classes, neuron)
        self.linear_kd = _classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Classify every step twice."""
        spikes = self.spikes(x)
        logits, kd = self.linear(spikes), self.linear_kd(spikes)
        return Outputs(logits, {"kd": kd}) if self.training else (logits + kd) / 2


def _classifier(dim: int, num_classes: int) -> nn.Linear:
    """Linear layer with the transformers' usual start: truncated normal 0.02, bias 0."""
    linear = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
