"""What a masked autoencoder sees of an image, and the decoder that predicts the other pixels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.errors import ConfigError


@dataclass(frozen=True)
class View:
    """The tokens of images that are seen.

    Attributes:
        tokens: Their numbers, for each image equally many, `[B, M]`.
        grid: Rows and columns of all tokens.
    """

    tokens: Tensor
    grid: tuple[int, int]

    def take(self, maps: Tensor) -> Tensor:
        """Cut seen tokens out of maps of any resolution.

        Shape:
            `[T*B, C, H, W]` -> `[T*B, C, P, M]` with P places per token.
        """
        side = maps.shape[2] // self.grid[0]
        tokens = F.pixel_unshuffle(maps, side).unflatten(1, (maps.shape[1], -1)).flatten(3)
        return tokens.gather(3, self._index(tokens))

    def put(self, tokens: Tensor) -> Tensor:
        """Put seen tokens back in their places; what is not seen is 0.

        Shape:
            `[T*B, C, P, M]` -> `[T*B, C, H, W]`.
        """
        rows, columns = self.grid
        every = tokens.new_zeros(*tokens.shape[:3], rows * columns)
        every = every.scatter(3, self._index(tokens), tokens)
        side = round(tokens.shape[2] ** 0.5)
        return F.pixel_shuffle(every.flatten(1, 2).unflatten(2, self.grid), side)

    def _index(self, tokens: Tensor) -> Tensor:
        steps = len(tokens) // len(self.tokens)
        return self.tokens.repeat(steps, 1)[:, None, None].expand(-1, *tokens.shape[1:3], -1)


class PixelDecoder(nn.Module):
    """A small vision transformer without neurons that predicts pixels, each time step on its own.

    A learned vector stands where a token is hidden; fixed sines and cosines say where that is.

    Args:
        channels: Width of the tokens that come.
        pixels: Numbers that a token stands for.
        dim: Width of the decoder.
        depth: Its blocks.
        heads: Its attention heads.

    Shape:
        `[T, B, channels, 1, M]` and the view of M tokens -> `[T, B, N, pixels]`.

    Reference:
        He et al., CVPR 2022, arXiv:2111.06377, sec. 3.
    """

    def __init__(self, channels: int, pixels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        if dim % 4 or dim % heads:
            raise ConfigError(
                f"decoder_dim={dim}: expected a multiple of 4, for the sines and cosines of rows "
                f"and columns, and of decoder_heads={heads}"
            )
        self.embed = nn.Linear(channels, dim)
        self.hidden = nn.Parameter(torch.empty(dim))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, pixels)
        nn.init.normal_(self.hidden, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, view: View) -> Tensor:
        """Put the tokens in their places, fill the holes, and predict."""
        seen = self.embed(x.flatten(0, 1).flatten(2).mT)  # [T*B, M, D]
        rows, columns = view.grid
        every = self.hidden.to(seen.dtype).expand(len(seen), rows * columns, -1)
        index = view.tokens.repeat(len(x), 1)[..., None].expand_as(seen)
        every = every.scatter(1, index, seen) + positions(view.grid, seen)
        return self.predict(self.norm(self.blocks(every))).unflatten(0, x.shape[:2])


def positions(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return a vector for every place of a grid: sines and cosines of its row, then of its column.

    The frequencies fall from 1 to 1/10000.

    Args:
        grid: Rows and columns.
        like: Has the width D, a multiple of 4, as its last axis, and the dtype and device.

    Shape:
        `[rows * columns, D]`.

    Reference:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, sec. 3.5.
    """
    quarter = like.shape[-1] // 4
    exponent = torch.arange(quarter, dtype=torch.float64, device=like.device) / quarter
    waves = []
    for size in grid:
        places = torch.arange(size, dtype=torch.float64, device=like.device)
        angle = places[:, None] / 10000**exponent
        waves.append(torch.cat([angle.sin(), angle.cos()], 1))
    rows, columns = grid
    of_row = waves[0][:, None].expand(-1, columns, -1)
    of_column = waves[1][None].expand(rows, -1, -1)
    return torch.cat([of_row, of_column], 2).flatten(0, 1).to(like.dtype)
