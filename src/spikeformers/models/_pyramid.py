"""The pyramid of QKFormer and MSViT: SPEDS in front of every stage, a classifier on top."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import SPEDS, Blocks, ClassificationHead
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.neurons import NeuronFactory


def pyramid(
    dims: Sequence[int],
    depths: Sequence[int],
    blocks: Sequence[Callable[[int], Mapping[str, nn.Module]]],
    stem: Callable[..., SPEDS],
    embed_strides: Sequence[int],
    in_channels: int,
    num_classes: int | None,
    neuron: NeuronFactory,
) -> Backbone:
    """Build the stages and the head.

    Args:
        dims: Width of each stage.
        depths: Blocks of each stage.
        blocks: For each stage, makes a block from the width.
        stem: Makes the first embedding.
        embed_strides: Strides of the convolutions of every later embedding.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes the neurons of the embeddings.

    Raises:
        ConfigError: If `dims` and `depths` differ in length.
    """
    if len(dims) != len(depths):
        raise ConfigError(
            f"dims and depths must have one entry per stage, got {len(dims)} and {len(depths)}"
        )
    stages: list[Stage] = []
    for dim, depth, block in zip(dims, depths, blocks, strict=True):
        if stages:
            embed = SPEDS((stages[-1].channels, dim, dim), embed_strides, neuron=neuron)
        else:
            embed = stem(in_channels, dim, neuron=neuron)
        stages.append(Stage(embed, Blocks([block(dim) for _ in range(depth)]), dim, embed.stride))
    # The stream holds spikes: no neuron stands in front of the classifier.
    head = None if num_classes is None else ClassificationHead(dims[-1], num_classes, nn.Identity)
    return Backbone(stages, head, in_channels)
