"""The official files of STMixer: their arguments and names, and ours."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from spikeformers.errors import ConfigError
from spikeformers.layers import SurrogateModule, mixed_time_mean, time_mean
from spikeformers.models._official import Official, join, register_official
from spikeformers.models.stmixer import STRIDES


def _from_constructor(
    *,
    img_size: int,
    downsample_times: int,
    embd_dims: int,
    depths: int,
    num_head: int,
    mlp_ratio: int | float,
    in_channels: int,
    num_classes: int,
    sml: bool = False,
    corrected: bool = False,
) -> Mapping[str, Any]:
    """Translate the arguments of the official constructor."""
    if downsample_times not in STRIDES:
        raise ConfigError(f"downsample_times={downsample_times}: expected 2 or 4")
    if mlp_ratio != int(mlp_ratio):
        raise ConfigError(f"mlp_ratio={mlp_ratio}: expected a whole number")
    return dict(
        dim=embd_dims,
        depth=depths,
        heads=num_head,
        expansion=int(mlp_ratio),
        image_size=(img_size, img_size),
        strides=STRIDES[downsample_times],
        surrogates=sml,
        over_time=time_mean if corrected else mixed_time_mean,
        in_channels=in_channels,
        num_classes=num_classes,
    )


_SPLIT = {
    **{f"proj_conv.{3 * i}": f"spiking.conv{i + 1}.conv" for i in range(5)},
    **{f"proj_conv.{3 * i + 1}": f"spiking.conv{i + 1}.norm" for i in range(5)},
    **{f"proj_conv.{3 * i + 2}": f"spiking.neuron{i + 1}" for i in range(4)},
    "short_proj1.0": "direct.conv",
    "short_proj1.1": "direct.norm",
}
_MIXER = {
    "fc1.1": "linear1.linear",
    "fc1.2": "linear1.norm",
    "fc1.3": "neuron1",
    "attn.linear_mix.{i}": "tokens.heads.{i}",
    "fc2.0": "neuron2",
    "fc2.1": "linear2.linear",
    "fc2.2": "linear2.norm",
}
_EXPAND = {"fc1.1": "expand.linear", "fc1.2": "expand.norm"}
_PROJECT = {"fc2.0": "neuron", "fc2.1": "project.linear", "fc2.2": "project.norm"}
_PROJECT_SML = {"fc2.0": "project.linear", "fc2.1": "project.norm"}
_ENCODER = {
    "token_mix.fc1.0": "mixer.neuron",
    **join({"token_mix": "mixer.fn"}, _MIXER),
    "channel_mix.fc1.0": "mlp.neuron",
    **join({"channel_mix": "mlp.fn"}, _EXPAND | _PROJECT),
}
_SURROGATE_ENDS = {
    "proj_conv.0": "proj.linear.linear",
    "proj_conv.1": "proj.linear.norm",
    "head": "head.linear",
}
_SURROGATE_ENCODER = {
    **join({"spatial_mix": "mixer.fn.fn"}, _MIXER),
    **join({"channel_mix": "mlp.fn.fn"}, _EXPAND | _PROJECT_SML),
}


def _encoders(model: nn.Module) -> dict[str, str]:
    """Name the encoders, two to a stage, and the surrogate modules."""
    blocks = [path for path, m in model.named_modules() if isinstance(m, nn.ModuleDict)]
    main = [path for path in blocks if path.startswith("stages.")]
    names = join({f"block.{i}": path for i, path in enumerate(main)}, _ENCODER)
    surrogates = [m for m in model.modules() if isinstance(m, SurrogateModule)]
    for n, surrogate in enumerate(surrogates):
        depth = len(surrogate.encoders)
        encoders = {f"encoder.{i}": f"encoders.{i}" for i in range(depth)}
        inner = _SURROGATE_ENDS | join(encoders, _SURROGATE_ENCODER)
        names |= join({f"sml{n + 1}": f"head.surrogates.{n}"}, inner)
    return names


register_official(
    Official(
        architecture="stmixer",
        file="brain-intelligence-lab/STMixer_demo/models/STMixer.py",
        callables={"STMixerV3": {}},
        arguments=_from_constructor,
        ignored=("T",),
        modules={**join({"patch_embd": "stages.0.embed"}, _SPLIT), "head": "head.linear"},
        modules_of=_encoders,
        axes={
            "sml*.proj_conv.0.weight": 3,
            "sml*.channel_mix.fc2.0.weight": 3,
            "sml*.channel_mix.fc2.1.weight": 1,
            "*_mix.fc?.1.weight": 3,
        },
    )
)
