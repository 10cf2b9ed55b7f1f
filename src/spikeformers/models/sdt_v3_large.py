"""E-SpikeFormer, the spike-driven transformer V3, in its large sizes.

Three stages of convolutions, then one deep stage of attention, as masked pre-training needs it.
The integer neurons are those of the base sizes but for how they round; all synapses of the
attention are two linear maps without a neuron between, and what a branch adds to the trunk starts
tiny, scaled per channel. One classifier reads the membrane, a second one learns from a teacher.

Paper: Yao et al., "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
Training", T-PAMI 2025, arXiv:2411.16061.
Code: BICLab/Spike-Driven-Transformer-V3, without licence; so are the weights published there.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from spikeformers.errors import ConfigError
from spikeformers.layers import (
    SSA,
    Branch,
    Chain,
    ChannelConv,
    ChannelMLP,
    ClassificationHead,
    ConvBN,
    DistillationHead,
    LayerScale,
    LinearBN,
    Renormed,
    RepLinear,
    Trunk,
)
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import part, register
from spikeformers.neurons import ILIF, NeuronFactory
from spikeformers.types import Outputs

SFA = partial(ILIF, decay=0.0, scale=0.25, rounding="half_up")  # spike firing approximation
UNDIVIDED = partial(ILIF, decay=0.0, rounding="half_up")

CONV_STAGES = 3

Block = dict[str, Branch]
"""The parts of a block: name -> what it adds to the trunk."""


def rep_linear(in_channels: int, out_channels: int) -> Renormed:
    """Return the synapse of queries, keys and values."""
    return Renormed(RepLinear(in_channels, int(1.5 * in_channels), out_channels), out_channels)


def scaled(synapse: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Let a factory of synapses make them with a layer scale."""
    return lambda in_channels, out_channels: LayerScale(
        synapse(in_channels, out_channels), out_channels
    )


@part
def membrane_head(dim: int, num_classes: int) -> ClassificationHead:
    """Return a classifier that reads the membrane, without a second one for a teacher."""
    return ClassificationHead(dim, num_classes, neuron=nn.Identity)


@part
class MembraneDistillationHead(DistillationHead):
    """`DistillationHead` whose first classifier reads the membrane; only the second sees spikes.

    Args:
        dim: Channels.
        num_classes: Classes K.
        neuron: Makes the neuron, whose integers are not divided.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.
    """

    def __init__(self, dim: int, num_classes: int, neuron: NeuronFactory = UNDIVIDED) -> None:
        super().__init__(dim, num_classes, neuron)

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Classify every step twice."""
        membrane = x.mean((-2, -1))
        logits, kd = self.linear(membrane), self.linear_kd(self.neuron(membrane))
        return Outputs(logits, {"kd": kd}) if self.training else (logits + kd) / 2


@part
def scaled_attn_block(
    dim: int, heads: int, expansion: int, value_expansion: int, neuron: NeuronFactory
) -> Block:
    """Attention and MLP, both scaled per channel."""
    attention = SSA(
        dim,
        heads,
        neuron,
        qkv=rep_linear,
        proj=scaled(rep_linear),
        v_threshold=None,
        value_expansion=value_expansion,
    )
    mlp = ChannelMLP(dim, expansion, neuron, project=scaled(partial(LinearBN, bias=True)))
    return dict(attn=Branch(neuron(), attention), mlp=Branch(neuron(), mlp))


@part
def rep_attn_block(
    dim: int, heads: int, expansion: int, value_expansion: int, neuron: NeuronFactory
) -> Block:
    """The same behind a linear map in a branch of its own."""
    rep = Branch(neuron(), RepLinear(dim, dim, dim))
    return dict(rep=rep, **scaled_attn_block(dim, heads, expansion, value_expansion, neuron))


@register(
    "sdt_v3_large",
    variants={
        "83m": dict(dims=(64, 128, 256, 512), block=rep_attn_block),
        "173m": dict(dims=(98, 196, 384, 768)),
        "tiny": dict(
            dims=(8, 8, 16, 24),
            depths=(1, 1, 1, 1),
            heads=4,
            num_classes=10,
            block=rep_attn_block,
        ),
    },
)
def sdt_v3_large(
    *,
    dims: Sequence[int],
    depths: Sequence[int] = (1, 1, 2, 12),
    heads: int = 8,
    expansion: int = 4,
    value_expansion: int = 1,
    drop_path: float = 0.1,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    neuron: NeuronFactory = SFA,
    block: Callable[..., Block] = scaled_attn_block,
    head: Callable[..., nn.Module] = MembraneDistillationHead,
) -> Backbone:
    """Build an E-SpikeFormer of large size.

    Args:
        dims: Width of each of the four stages; three have conv blocks, the last has attention.
        depths: Blocks of each stage.
        heads: Attention heads.
        expansion: Widening of the hidden layer where channels are mixed.
        value_expansion: Width of the attention's values relative to the stage.
        drop_path: Probability of dropping attention or MLP of the last block in training; it rises
            linearly from 0 in the first.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        neuron: Makes all neurons but the head's. For D levels: `scale=1 / D`.
        block: Makes the parts of an attention block; `rep_attn_block` is the 83M model's.
        head: Makes the classification head; `membrane_head` has no second one for a teacher.

    Raises:
        ConfigError: If there are not four `dims` and `depths`.

    Deviations:
        The committed 83M model cannot run, since its blocks use names before they are assigned;
        here they take the sizes from their input. The published widths of the 173M model begin
        with 98 and 196, those of its pre-training with 96 and 192.

    Reference:
        Yao et al., T-PAMI 2025, arXiv:2411.16061.
    """
    if not len(dims) == len(depths) == CONV_STAGES + 1:
        raise ConfigError(
            f"dims and depths must have one entry for each of the four stages, got {len(dims)} "
            f"and {len(depths)}"
        )

    def conv_trunk(dim: int, depth: int) -> Trunk:
        conv = partial(ConvBN, kernel_size=3, bias=True)
        bodies = [ChannelConv(dim, expansion, neuron, conv) for _ in range(depth)]
        return Trunk([dict(mlp=Branch(neuron(), body)) for body in bodies])

    def attn_trunk(dim: int, depth: int) -> Trunk:
        blocks = [block(dim, heads, expansion, value_expansion, neuron) for _ in range(depth)]
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        # The linear map in front of an attention always stays.
        drops = [
            0.0 if name == "rep" else rate
            for parts, rate in zip(blocks, rates, strict=True)
            for name in parts
        ]
        return Trunk(blocks, drops)

    stages = []
    width = in_channels
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        conv = ConvBN(width, dim, 7 if i == 0 else 3, 2, bias=True)
        # The stem sees the image, so no neuron leads it.
        embed = Chain(conv=conv) if i == 0 else Chain(neuron=neuron(), conv=conv)
        trunk = conv_trunk if i < CONV_STAGES else attn_trunk
        stages.append(Stage(embed, trunk(dim, depth), dim, 2))
        width = dim
    top = None if num_classes is None else head(width, num_classes)
    model = Backbone(stages, top, in_channels)
    for module in model.modules():
        if type(module) is nn.Linear:  # a classifier; maps over channels are of another class
            nn.init.xavier_uniform_(module.weight)
    return model
