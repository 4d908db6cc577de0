"""Static affinities between any two positions of a map of one size (Gao et al. 2021), and how they become others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
"""Rows and columns of a map."""


class DenseAffinity(nn.Module):
    """A'_m V_m with a learned N x N matrix for each of M heads.

    leading: tokens before those of the map, a class token for instance, which have rows and columns, too.
    """

    def __init__(self, heads: int, grid: Grid, leading: int = 0, std: float = 1.0) -> None:
        """grid: the map's size; std: of the truncated normal distribution that the numbers are drawn from."""
        super().__init__()
        if min(grid) < 1:
            raise ValueError(f"a dense affinity is of maps of one size in positions, not of {grid[0]} x {grid[1]}")
        self.grid, self.leading = grid, leading
        tokens = leading + grid[0] * grid[1]
        self.affinity = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, heads, tokens, tokens), std=std))

    def forward(self, value: Tensor, grid: Grid) -> Tensor:
        """[B, M, leading + N, C / M] to the same, of a map of size `grid`; interpolated where that is not its own."""
        affinity = resampled(self.affinity, self.grid, grid, self.leading)
        # One product for each head, of all images together: the matrices are not repeated for each image.
        return torch.einsum("mij,bmjc->bmic", affinity[0], value)


def resampled(affinity: Tensor, old: Grid, new: Grid, leading: int = 0) -> Tensor:
    """A dense affinity [1, M, leading + N, leading + N] for maps of another size, [1, M, leading + N', leading + N'].

    With R [N', N] the bicubic interpolation of a map (antialiased, its rows sum to 1), a row a of A' becomes
    N / N' R a + s, with one s for the row that makes up what its sum has lost; then R makes new rows from these rows.
    So a row sums to what the old ones around its position sum to, a constant affinity stays constant, and at the old
    size nothing changes. Rows are not divided by their sums, which may be near 0: entries have any sign. The leading
    tokens' columns are interpolated over rows alone, and their affinities to each other stay.
    """
    if old == new:
        return affinity
    wide = affinity[0].to(torch.promote_types(affinity.dtype, torch.float32))
    with torch.autocast(affinity.device.type, enabled=False):
        keys = wide[..., leading:]
        fine = _interpolated(keys, old, new) * (old[0] * old[1] / (new[0] * new[1]))
        fine = fine + (keys.sum(-1, keepdim=True) - fine.sum(-1, keepdim=True)) / (new[0] * new[1])
        columns = torch.cat([wide[..., :leading], fine], dim=-1)
        queries = _interpolated(columns[:, leading:].transpose(1, 2), old, new).transpose(1, 2)
        return torch.cat([columns[:, :leading], queries], dim=1)[None].to(affinity.dtype)


def _interpolated(maps: Tensor, old: Grid, new: Grid) -> Tensor:
    """[M, K, N] to [M, K, N']."""
    return F.interpolate(maps.unflatten(2, old), new, mode="bicubic", antialias=True).flatten(2)
