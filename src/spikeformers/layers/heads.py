"""Heads: from the last feature map to per-step outputs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spikeformers.layers.shortcut import Chain
from spikeformers.layers.synapse import Additive, Conv, ConvBN
from spikeformers.neurons import LIF, NeuronFactory
from spikeformers.types import Outputs


class ClassificationHead(Additive, nn.Module):
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


class DetectionHead(Additive, nn.Module):
    """Boxes and classes at every position of several maps; see `decode_boxes`.

    Each map has two branches of two 3x3 and one 1x1 convolution, a neuron in front of each. One
    says where the four sides of a box are, each as `bins` scores, the other what is inside it.

    Args:
        dims: Channels of each map, the finest first.
        num_classes: Classes K.
        bins: How many distances, 0 to `bins - 1` strides, a side can have.
        neuron: Makes the neurons.

    Shape:
        for each map `[T, B, dims[i], H, W]` -> `[T, B, 4*bins + K, H, W]`.

    Reference:
        Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388, eq. 5.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        bins: int = 16,
        neuron: NeuronFactory = LIF,
    ) -> None:
        super().__init__()

        def branch(dim: int, hidden: int, outputs: int) -> Chain:
            return Chain(
                neuron1=neuron(),
                conv1=ConvBN(dim, hidden, 3),
                neuron2=neuron(),
                conv2=ConvBN(hidden, hidden, 3),
                neuron3=neuron(),
                conv3=Conv(hidden, outputs, 1),
            )

        self.bins = bins
        self.boxes = nn.ModuleList(branch(dim, 4 * bins, 4 * bins) for dim in dims)
        self.classes = nn.ModuleList(branch(dim, dims[0], num_classes) for dim in dims)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Predict at every position of every map."""
        branches = zip(maps, self.boxes, self.classes, strict=True)
        return [torch.cat([boxes(x), classes(x)], 2) for x, boxes, classes in branches]


def decode_boxes(
    maps: Sequence[Tensor], strides: Sequence[int], bins: int = 16
) -> tuple[Tensor, Tensor]:
    """Turn the maps of a `DetectionHead`, averaged over time, into boxes and class scores.

    The softmax over the bins of a side is a distribution of its distance from the middle of the
    cell; its mean, in strides, is where the side is.

    Args:
        maps: `[B, 4*bins + K, H, W]` each.
        strides: Pixels between neighbouring cells of each map.
        bins: Distances of a side.

    Returns:
        Boxes `[B, N, 4]` as left, top, right and bottom in pixels, and probabilities `[B, N, K]`,
        for the N cells of all maps.

    Reference:
        Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388, eq. 5.
    """
    boxes, probabilities = [], []
    for x, stride in zip(maps, strides, strict=True):
        cells = x.flatten(2).mT  # [B, H*W, 4*bins + K]
        sides, classes = cells[..., : 4 * bins], cells[..., 4 * bins :]
        count = torch.arange(max(bins, *x.shape[2:]), dtype=x.dtype, device=x.device)
        distances = sides.unflatten(-1, (4, bins)).softmax(-1) @ count[:bins]
        left, top, right, bottom = distances.unbind(-1)
        height, width = x.shape[2:]
        row = (count[:height] + 0.5).repeat_interleave(width)
        column = (count[:width] + 0.5).repeat(height)
        corners = (column - left, row - top, column + right, row + bottom)
        boxes.append(stride * torch.stack(corners, -1))
        probabilities.append(classes.sigmoid())
    return torch.cat(boxes, 1), torch.cat(probabilities, 1)


def _classifier(dim: int, num_classes: int) -> nn.Linear:
    """Linear layer with the transformers' usual start: truncated normal 0.02, bias 0."""
    linear = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
