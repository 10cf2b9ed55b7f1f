"""The skeleton that all architectures share: stages of embedding and blocks, then a head."""

import operator
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import InputError
from spikeformers.layers import Additive


class Stage(Additive, nn.Module):
    """One resolution of a backbone.

    Args:
        embed: Changes width and resolution; its leading neuron in sight.
        blocks: Keep both: a `Trunk`, or other residual blocks.
        channels: Width after `embed`.
        stride: Factor by which `embed` shrinks the map.
    """

    def __init__(self, embed: nn.Module, blocks: nn.Module, channels: int, stride: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = blocks
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, channels, H/stride, W/stride]`."""
        return self.blocks(self.embed(x))


class Backbone(Additive, nn.Module):
    """Stages and a head: `[T, B, C, H, W]` -> per-step scores `[T, B, K]`.

    Args:
        stages: From fine to coarse.
        head: Reads the last map; `None` makes a headless backbone that returns it.
        in_channels: Channels that the first stage expects.
        image_size: Height and width that the weights fit; `None` where they fit every size.

    Attributes:
        has_fixed_graph: Whether the same operations run for every input, so that it can be compiled
            and exported.
        channels: Width of each stage's map.
        strides: Stride of each stage's map relative to the input.
        config: The registered name and the overrides, where `create_model` made the model.
        official_source: Where the weights came from, where `from_official` loaded them.
        pretrained: Content of `config.json`, where `from_pretrained` loaded the model: how to feed
            it (`classes`, `preprocessing`, `timesteps`), as far as it was saved.
    """

    has_fixed_graph = True
    config: Any = None
    official_source: Any = None
    pretrained: Any = None

    def __init__(
        self,
        stages: Iterable[Stage],
        head: nn.Module | None,
        in_channels: int = 3,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        if not len(self.stages):
            raise InputError("stages is empty: a backbone needs one at least (see dims and depths)")
        self.head = head
        self.in_channels = in_channels
        self.image_size = image_size
        self.channels = [stage.channels for stage in self.stages]
        self.strides = list(accumulate((stage.stride for stage in self.stages), operator.mul))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, `[T, B, channels[i], H/strides[i], W/strides[i]]`."""
        if not torch.compiler.is_compiling():
            self._check(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Any:
        """Return per-step scores, or `Outputs` in training if the head has further ones.

        A detector returns one map of scores per stage.
        """
        return self.read(self.features(x))

    def read(self, maps: list[Tensor]) -> Any:
        """Return what `forward` returns, given the map of every stage."""
        return maps[-1] if self.head is None else self.head(maps[-1])

    def readout(self, y: Tensor) -> Tensor:
        """Turn per-step scores `[T, B, K]` into scores `[B, K]`: the mean over time."""
        return y.mean(0)

    def save_pretrained(self, folder: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors`, `config.json` and a model card, `README.md`.

        Args:
            folder: New, or written by this method before; then it is written anew.
            card: What to say about the model, as plain data, each entry optional: `classes`
                (names), `preprocessing` (`image_size`, `mean`, `std`, `crop`), `timesteps`,
                `license`, `tags`, `recipe` (the training, written to `recipe.yaml`), and `figures`:
                measured ones, each with `data`, `top1` (percent), `seed`, `hardware`, `command`,
                and if you like `images`, `timesteps`, `minutes`, `note`.

        Raises:
            ConfigError: If the card is not as above, or the model has no registered name.
            CheckpointError: If the model was changed since it was made (folded, for example), or
                the folder holds other files of these names or cannot be written.
            MissingExtraError: If huggingface_hub is not installed.
        """
        from spikeformers.models._hub import HubModel

        HubModel(self, card).save_pretrained(folder)

    def push_to_hub(
        self, name: str, *, card: Mapping[str, Any] | None = None, **options: Any
    ) -> str:
        """Upload what `save_pretrained` writes to a repository, and return the commit's address.

        Args:
            name: `owner/name`; made if it is not there.
            card: See `save_pretrained`.
            options: Of huggingface_hub's `ModelHubMixin.push_to_hub`: `private`, `token`, `branch`,
                `commit_message`, `create_pr`.

        Raises:
            CheckpointError: If the Hub cannot be reached or refuses; else as `save_pretrained`.
        """
        from spikeformers.models._hub import HubModel

        return HubModel(self, card).push_to_hub(name, **options)

    @staticmethod
    def from_pretrained(
        name: str | Path, *, revision: str | None = None, **options: Any
    ) -> "Backbone":
        """Load a model that `save_pretrained` or `push_to_hub` wrote, in eval mode, on the CPU.

        Args:
            name: A folder, or `owner/name` on the Hub.
            revision: Branch, tag or commit there; default: the main branch.
            options: Of huggingface_hub's `hf_hub_download`: `token`, `cache_dir`,
                `force_download`, `local_files_only`.

        Raises:
            CheckpointError: If there is no such folder or repository, the Hub cannot be reached, or
                what is there was not written by this library.
            MissingExtraError: If huggingface_hub is not installed.
        """
        from spikeformers.models._hub import HubModel

        return HubModel.from_pretrained(name, revision=revision, **options).backbone

    def _check(self, x: Tensor) -> None:
        """Raise `InputError` with the likely fix."""
        shape = list(x.shape)
        if x.ndim == 4:
            raise InputError(
                f"x has shape {shape}, but a model takes time-first input [T, B, C, H, W]: "
                "encode it first: encode.direct(x, timesteps=4)"
            )
        if x.ndim != 5 or x.shape[0] == 0:
            raise InputError(f"x has shape {shape}: expected [T, B, C, H, W] with T >= 1")
        if not x.is_floating_point():
            raise InputError(f"x is {x.dtype}: scale images to 0..1 and normalise them first")
        if x.shape[2] != self.in_channels:
            raise InputError(
                f"x has {x.shape[2]} channels (axis 2 of {shape}), the model expects "
                f"{self.in_channels}: create it with in_channels={x.shape[2]}"
            )
        if min(x.shape[3:]) < self.strides[-1]:
            raise InputError(
                f"x is {x.shape[3]}x{x.shape[4]}, smaller than the network's stride "
                f"{self.strides[-1]}: use larger images or a model for small ones"
            )
        if self.image_size is not None and (x.shape[3], x.shape[4]) != self.image_size:
            height, width = self.image_size
            raise InputError(
                f"x is {x.shape[3]}x{x.shape[4]}, but the weights of this model fit {height}x"
                f"{width} only: resize the images, or create it with "
                f"image_size=({x.shape[3]}, {x.shape[4]})"
            )
        # On an accelerator this test would make the host wait for the device at every step.
        once_per_image = x[:1] if x.stride(0) == 0 else x
        if x.device.type == "cpu" and not once_per_image.isfinite().all():
            raise InputError("x holds NaN or infinite values")
