"""Where the positions of a feature map lie, encoded for the transformer (Carion et al. 2020, section A.4).

Shapes: B images, h x w positions, C channels. Padding lies at the bottom and the right, so one count of valid rows
and one of valid columns per image say everything that a [B, h, w] mask would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Extent:
    """How much of a feature map each image of a batch covers.

    height, width: positions of the map; rows, columns: [B] int64, those of each image that are valid;
    padded: False promises that every image covers the whole map, so that masks can be left out.
    """

    height: int
    width: int
    rows: Tensor
    columns: Tensor
    padded: bool = True

    def padding(self) -> Tensor:
        """[B, h * w] bool, True on padding."""
        below = torch.arange(self.height, device=self.rows.device) >= self.rows[:, None]
        right = torch.arange(self.width, device=self.rows.device) >= self.columns[:, None]
        return (below[:, :, None] | right[:, None, :]).flatten(1)


def extent(sizes: Tensor, padded_size: tuple[int, int], map_size: tuple[int, int], padded: bool = True) -> Extent:
    """The positions that each image covers: one is valid when the pixel that nearest-neighbour sampling reads is.

    sizes: [B, 2] int64 true (height, width); padded_size, map_size: (height, width) of the batch and of the map.
    """

    def valid(true: Tensor, pixels: int, length: int) -> Tensor:
        inside = torch.arange(pixels, device=true.device) < true[:, None]
        return F.interpolate(inside[:, None].float(), size=length).sum(dim=(1, 2)).long()

    rows = valid(sizes[:, 0], padded_size[0], map_size[0])
    columns = valid(sizes[:, 1], padded_size[1], map_size[1])
    return Extent(map_size[0], map_size[1], rows, columns, padded)


class SinePosition(nn.Module):
    """Sines and cosines of the row and the column, each scaled to 2 pi over the image's valid extent."""

    def __init__(self, width: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"sine positions need a width that is a multiple of 4, not {width}: set head.width")
        self.width, self.temperature = width, temperature

    def forward(self, cover: Extent) -> Tensor:
        """[B, h * w, C] float32; channels hold y first, then x, each as sin, cos, sin, cos, ..."""
        y = self._encode(cover.rows, cover.height)[:, :, None, :].expand(-1, -1, cover.width, -1)
        x = self._encode(cover.columns, cover.width)[:, None, :, :].expand(-1, cover.height, -1, -1)
        return torch.cat((y, x), dim=-1).flatten(1, 2)

    def _encode(self, valid: Tensor, length: int) -> Tensor:
        """[B] valid positions to [B, length, C / 2]."""
        index = torch.arange(1, length + 1, device=valid.device, dtype=torch.float32)
        last = valid[:, None].float()
        angle = torch.minimum(index, last) / (last + 1e-6) * (2 * math.pi)
        half = torch.arange(self.width // 4, device=valid.device, dtype=torch.float32)
        phase = angle[..., None] / self.temperature ** (4 * half / self.width)
        return torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)


class LearnedPosition(nn.Module):
    """One learned vector per row and per column, up to `limit` positions a side."""

    def __init__(self, width: int, limit: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(limit, width // 2)
        self.col_embed = nn.Embedding(limit, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, cover: Extent) -> Tensor:
        """[B, h * w, C] float32; channels hold x first, then y.

        Raises ValueError when the map has more positions a side than there are vectors.
        """
        limit = self.row_embed.num_embeddings
        if max(cover.height, cover.width) > limit:
            raise ValueError(
                f"the learned encoding covers {limit} positions a side, the feature map has {cover.height} x "
                f"{cover.width}: use head.position=sine, or smaller images (data.max_size, data.eval_size)"
            )
        x = self.col_embed.weight[: cover.width][None, :, :].expand(cover.height, -1, -1)
        y = self.row_embed.weight[: cover.height][:, None, :].expand(-1, cover.width, -1)
        return torch.cat((x, y), dim=-1).flatten(0, 1).expand(len(cover.rows), -1, -1)
