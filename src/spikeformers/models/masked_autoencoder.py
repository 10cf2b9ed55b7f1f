"""A masked autoencoder: a spiking backbone that sees part of an image, and a decoder for the rest.

The backbone learns without labels. Of each image it gets some tokens only, as if the image had
holes; a small vision transformer without neurons guesses the pixels of the others. After training
the decoder is thrown away and a classifier takes its place as the head.

Paper: Yao et al., "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
Training", T-PAMI 2025, arXiv:2411.16061, after He et al., "Masked Autoencoders Are Scalable Vision
Learners", CVPR 2022, arXiv:2111.06377. That convolutions leave holes empty is of Tian et al.,
"Designing BERT for Convolutional Networks" (SparK), ICLR 2023, arXiv:2301.03580.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import BatchNorm, Blocks
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._pixels import PixelDecoder, View
from spikeformers.models._registry import create_model, register
from spikeformers.models._some_tokens import each, membranes_of_tokens


@register("masked_autoencoder", variants={})
def masked_autoencoder(
    *,
    backbone: str,
    overrides: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    decoder_dim: int = 256,
    decoder_depth: int = 4,
    decoder_heads: int = 4,
) -> "MaskedAutoencoder":
    """Build a masked autoencoder around a registered backbone.

    Args:
        backbone: Its registered name.
        overrides: Further arguments of the backbone.
        in_channels: Channels of the input.
        decoder_dim: Width of the decoder.
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.

    Raises:
        ConfigError: If the decoder's width does not fit its heads and positions, or the backbone is
            more than stages and a head.
    """
    encoder = create_model(backbone, in_channels=in_channels, num_classes=None, **overrides or {})
    if type(encoder).features is not Backbone.features:
        raise ConfigError(f"backbone={backbone} is more than stages: nothing of it can be left out")
    pixels = in_channels * encoder.strides[-1] ** 2
    last = encoder.stages[-1]
    assert isinstance(last, Stage)
    decoder = PixelDecoder(last.channels, pixels, decoder_dim, decoder_depth, decoder_heads)
    return MaskedAutoencoder(encoder, decoder)


class MaskedAutoencoder(Backbone):
    """A backbone that sees some tokens, and a decoder as its head that predicts the pixels of all.

    A token is a square of the image as large as the backbone's last stride. What is hidden is 0 in
    the image and behind every batch norm, whose statistics are those of what is seen: no
    convolution knows anything of it, and no hidden neuron fires. Where the last blocks mix tokens
    by attention only, they compute the seen ones and no others; both ways give the same numbers.

    Args:
        encoder: A headless backbone. Its stages are reused.
        decoder: Predicts.

    Shape:
        x `[T, B, C, H, W]`, visible `[B, M]` -> `[T, B, N, C*p*p]` for N tokens of p x p pixels, in
        the order of `torch.nn.functional.pixel_unshuffle`.

    Deviations:
        The decoder reads the membrane of the last block. A pooling window at the border of what is
        hidden sees zeros there.

    References:
        Yao et al., T-PAMI 2025, arXiv:2411.16061; Tian et al., ICLR 2023, arXiv:2301.03580, sec. 3.
    """

    def __init__(self, encoder: Backbone, decoder: PixelDecoder) -> None:
        super().__init__(
            encoder.stages,  # type: ignore[arg-type]
            decoder,
            encoder.in_channels,
            encoder.image_size,
        )
        last = self.stages[-1]
        assert isinstance(last, Stage) and isinstance(last.blocks, Blocks)
        kinds = {repr(block): block for block in each(last.blocks)}
        self.gathers = all(
            membranes_of_tokens(block, last.channels) is not None for block in kinds.values()
        )
        self.view: View | None = None
        gathered = set(last.blocks.modules()) if self.gathers else set()
        for module in self.stages.modules():
            if isinstance(module, BatchNorm) and module not in gathered:
                module.register_forward_pre_hook(self._only_seen)
                module.register_forward_hook(self._in_place)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, with nothing hidden."""
        self.view = None
        return super().features(x)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Predict the pixels of all tokens from the visible ones; `None` hides nothing."""
        if not torch.compiler.is_compiling():
            self._check(x)
        # It stays after the call: in the backward pass, recomputation runs the norms again.
        self.view = view = self._view(x, visible)
        steps = x.shape[:2]
        x = view.put(view.take(x.flatten(0, 1))).unflatten(0, steps)
        *stages, last = self.stages
        for stage in stages:
            x = stage(x)
        assert isinstance(last, Stage) and self.head is not None
        x = last.embed(x)
        if self.gathers:
            seen = last.blocks(view.take(x.flatten(0, 1)).unflatten(0, steps))
        else:
            seen = view.take(last.blocks(x).flatten(0, 1)).unflatten(0, steps)
        pixels: Tensor = self.head(seen, view)
        return pixels

    def _view(self, x: Tensor, visible: Tensor | None) -> View:
        height, width = x.shape[3:]
        side = self.strides[-1]
        if height % side or width % side:
            raise InputError(
                f"x is {height}x{width}: its tokens are {side}x{side} pixels, so height and width "
                f"must be multiples of {side}"
            )
        grid = height // side, width // side
        if visible is None:
            visible = torch.arange(grid[0] * grid[1], device=x.device).expand(x.shape[1], -1)
        return View(visible, grid)

    def _only_seen(self, _norm: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return args if self.view is None else (self.view.take(*args),)

    def _in_place(self, _norm: nn.Module, _args: tuple[Tensor], y: Tensor) -> Tensor:
        return y if self.view is None else self.view.put(y)
