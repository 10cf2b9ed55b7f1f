"""STMixer, a spiking transformer made of operations that event-driven chips can do.

Trained matrices mix the tokens in place of attention, strided convolutions take the place of max
pools, and a second path hands an eighth of the channels straight from the image to the trunk, so
that no detail is lost in early spikes. Further classifiers without spikes, the surrogate modules,
read the trunk in training and give early blocks gradients that no surrogate derivative has blurred.

Paper: Deng et al., "Spiking Token Mixer: An Event-driven Friendly Former Structure for Spiking
Neural Networks", NeurIPS 2024.
Code: brain-intelligence-lab/STMixer_demo, without licence. No weights are published.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    Branch,
    Chain,
    ClassificationHead,
    ConvBN,
    LinearBN,
    SurrogateHead,
    SurrogateModule,
    Trunk,
    time_mean,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import register
from spikeformers.neurons import LIF, NeuronFactory
from spikeformers.types import Outputs


class TokenMixer(nn.Module):
    """Mix the tokens of each group of channels by a trained matrix: `y_h = x_h W_h^T`.

    Args:
        tokens: Number of tokens N; the layer fits this one.
        heads: Groups of neighbouring channels; divides the channels.

    Shape:
        spikes `[T, B, C, H, W]` -> current `[T, B, C, H, W]`, where `H*W = tokens`.
    """

    def __init__(self, tokens: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(tokens, tokens, bias=False) for _ in range(heads))
        # A neuron follows without a norm, so the scale of the first weights matters.
        for weight in self.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Apply each matrix to its group."""
        groups = x.flatten(3).chunk(len(self.heads), dim=2)
        mixed = [head(group) for head, group in zip(self.heads, groups, strict=True)]
        return torch.cat(mixed, dim=2).unflatten(3, x.shape[3:])


class PatchSplitting(nn.Module):
    """Information-protecting patch splitting (IPSPS): two paths from the image to the trunk.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, a multiple of 8: one eighth comes straight from the image.
        strides: Strides of the five convolutions of the spiking path.
        neuron: Makes the neurons between them.

    Shape:
        `[T, B, in_channels, H, W]` -> potentials `[T, B, dim, H/patch, W/patch]`, where `patch` is
        the product of the strides.
    """

    def __init__(
        self, in_channels: int, dim: int, strides: Sequence[int], neuron: NeuronFactory
    ) -> None:
        super().__init__()
        eighth, patch = dim // 8, math.prod(strides)
        widths = (in_channels, eighth, 2 * eighth, 4 * eighth, 8 * eighth, 7 * eighth)
        self.direct = ConvBN(in_channels, eighth, patch, patch, padding=0)
        self.spiking = Chain(conv1=ConvBN(widths[0], widths[1], 3, strides[0]))
        for i in range(1, 5):
            self.spiking.add_module(f"neuron{i}", neuron())
            conv = ConvBN(widths[i], widths[i + 1], 3, strides[i])
            self.spiking.add_module(f"conv{i + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        """Lay the channels of both paths side by side."""
        return torch.cat([self.direct(x), self.spiking(x)], dim=2)


def encoder(
    dim: int, tokens: int, heads: int, expansion: int, neuron: Callable[..., nn.Module]
) -> dict[str, nn.Module]:
    """Return the two bodies of an encoder, without their leading neurons: tokens, channels."""
    mixer = Chain(
        linear1=LinearBN(dim, dim),
        neuron1=neuron(),
        tokens=TokenMixer(tokens, heads),
        neuron2=neuron(),
        linear2=LinearBN(dim, dim),
    )
    mlp = Chain(
        expand=LinearBN(dim, expansion * dim),
        neuron=neuron(),
        project=LinearBN(expansion * dim, dim),
    )
    return dict(mixer=mixer, mlp=mlp)


class STMixer(Backbone):
    """A backbone whose surrogate modules, if any, read the map of each stage but the last."""

    def read(self, maps: list[Tensor]) -> Any:
        """Return per-step scores; in training `Outputs` with those of the surrogate modules."""
        if not (self.training and isinstance(self.head, SurrogateHead)):
            return super().read(maps)
        *early, last = maps
        readers = zip(self.head.surrogates, early, strict=True)
        return Outputs(
            self.head(last), {f"sml{i}": sml(x) for i, (sml, x) in enumerate(readers, 1)}
        )


_LIF = partial(LIF, decay_input=False, detach_reset=False, surrogate="tanh")
STRIDES = {2: (1, 1, 1, 2, 2), 4: (1, 2, 2, 2, 2)}
_CIFAR = dict(image_size=(32, 32), strides=STRIDES[2], num_classes=10)


@register(
    "stmixer",
    variants={
        "8_512": dict(dim=512, depth=8),
        "8_768": dict(dim=768, depth=8),
        "cifar_2_384": dict(dim=384, depth=2, **_CIFAR),
        "cifar_4_256": dict(dim=256, depth=4, **_CIFAR),
        "cifar_4_384": dict(dim=384, depth=4, **_CIFAR),
        "cifar_10_384": dict(dim=384, depth=10, **_CIFAR),
        # A small size of our own, for images of 32x32 pixels.
        "xs32": dict(dim=80, depth=2, heads=4, **_CIFAR),
        "tiny": dict(
            dim=16, depth=4, heads=4, image_size=(48, 64), surrogates=True, num_classes=10
        ),
    },
)
def stmixer(
    *,
    dim: int,
    depth: int,
    heads: int = 16,
    expansion: int = 4,
    image_size: Sequence[int] = (224, 224),
    strides: Sequence[int] = STRIDES[4],
    surrogates: bool = False,
    over_time: Callable[[Tensor], Tensor] = time_mean,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = _LIF,
) -> Backbone:
    """Build an STMixer; its first stage splits the image, each further one has two encoders.

    Args:
        dim: Channels of the tokens, a multiple of 8.
        depth: Encoders.
        heads: Groups of channels that share a token matrix.
        expansion: Widening of the MLP's hidden layer.
        image_size: Height and width of the images; the token matrices fit no other size.
        strides: Strides of the five convolutions that split the image.
        surrogates: Whether surrogate modules help in training; the scores of eval mode have no part
            of them.
        over_time: How the surrogate modules take the mean over time.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons: no input decay, the reset in the gradient.

    Raises:
        ConfigError: If `dim`, `depth`, `heads`, `image_size` or `strides` do not fit together.

    Deviations:
        At `T > 1` the official surrogate modules average steps of different samples; here each
        sample has its own mean. Official weights come with `mixed_time_mean`, which reproduces
        that, unless `corrected=True`. Scores at inference are the same either way.

    Reference:
        Deng et al., "Spiking Token Mixer", NeurIPS 2024.
    """
    if len(strides) != 5 or min(strides) < 1:
        raise ConfigError(f"strides={tuple(strides)}: expected five strides of at least 1")
    if dim < 8 or dim % 8 or heads < 1 or dim % heads:
        raise ConfigError(f"dim={dim}: expected a multiple of 8 and of heads={heads}")
    if depth < 1 or (surrogates and depth % 2):
        raise ConfigError(f"depth={depth}: expected at least 1, and even with surrogates=True")
    patch = math.prod(strides)
    if len(image_size) != 2 or any(side < patch or side % patch for side in image_size):
        raise ConfigError(
            f"image_size={tuple(image_size)}: expected height and width, multiples of {patch}"
        )
    height, width = image_size
    tokens = height * width // patch**2

    def trunk(blocks: int) -> Trunk:
        encoders = [encoder(dim, tokens, heads, expansion, neuron) for _ in range(blocks)]
        return Trunk([{k: Branch(neuron(), fn) for k, fn in e.items()} for e in encoders])

    split = PatchSplitting(in_channels, dim, strides, neuron)
    stages = [Stage(split, nn.Identity(), dim, patch)]
    for first in range(0, depth, 2):
        stages.append(Stage(nn.Identity(), trunk(min(2, depth - first)), dim, 1))
    head = None if num_classes is None else ClassificationHead(dim, num_classes, nn.Identity)
    if surrogates and num_classes is not None:
        # The earlier a module reads, the deeper it is: three encoders at most, one at least.
        depths = [max(1, min(3, depth // 2) - i) for i in range(depth // 2)]
        surrogate_encoders = [
            [encoder(dim, tokens, heads, 4, nn.GELU) for _ in range(count)] for count in depths
        ]
        modules = [SurrogateModule(dim, e, num_classes, over_time) for e in surrogate_encoders]
        head = SurrogateHead(dim, num_classes, modules)
    return STMixer(stages, head, in_channels, (height, width))
