"""What the official files of Meta-SpikeFormer and E-SpikeFormer have in common.

Each function takes their word for a neuron, "lif" or "spike", and maps their paths to ours.
"""

from spikeformers.models._official import join

METAFORMER_IGNORED = (
    "img_size_h",
    "img_size_w",
    "patch_size",
    "qkv_bias",
    "qk_scale",
    "drop_rate",
    "attn_drop_rate",
    "norm_layer",
)
"""Arguments that decide nothing: sizes follow from the input, and nothing drops out."""

CONV_BLOCKS = {
    "ConvBlock1_1.0": "stages.0.blocks.0",
    "ConvBlock1_2.0": "stages.1.blocks.0",
    "ConvBlock2_1.0": "stages.2.blocks.0",
    "ConvBlock2_2.0": "stages.2.blocks.1",
}
"""The blocks of the three convolutional stages."""

ATTN_BLOCKS = {"block3.{i}": "stages.3.blocks.{i}", "block4.{i}": "stages.4.blocks.{i}"}
"""The blocks of the stages behind them."""


def embeddings(neuron: str) -> dict[str, str]:
    """Map what changes resolution in front of each stage."""
    stages = ("downsample1_1", "downsample1_2", "downsample2", "downsample3", "downsample4")
    return join(
        {name: f"stages.{i}.embed" for i, name in enumerate(stages)},
        {f"encode_{neuron}": "neuron", "encode_conv": "conv.conv", "encode_bn": "conv.norm"},
    )


def channel_conv(neuron: str) -> dict[str, str]:
    """Map the channel mixer of a conv block."""
    return {
        f"{neuron}1": "mlp.neuron",
        "conv1": "mlp.fn.expand.conv",
        "bn1": "mlp.fn.expand.norm",
        f"{neuron}2": "mlp.fn.neuron",
        "conv2": "mlp.fn.project.conv",
        "bn2": "mlp.fn.project.norm",
    }


def attention_neurons(neuron: str) -> dict[str, str]:
    """Map the neurons of an attention block's first part."""
    return {
        f"attn.head_{neuron}": "attn.neuron",
        **{f"attn.{x}_{neuron}": f"attn.fn.{x}.neuron" for x in "qkv"},
        f"attn.attn_{neuron}": "attn.fn.neuron",
    }


def channel_mlp(neuron: str) -> dict[str, str]:
    """Map the channel mixer of an attention block."""
    return {
        f"mlp.fc1_{neuron}": "mlp.neuron",
        "mlp.fc1_conv": "mlp.fn.expand.linear",
        "mlp.fc1_bn": "mlp.fn.expand.norm",
        f"mlp.fc2_{neuron}": "mlp.fn.neuron",
        "mlp.fc2_conv": "mlp.fn.project.linear",
        "mlp.fc2_bn": "mlp.fn.project.norm",
    }
