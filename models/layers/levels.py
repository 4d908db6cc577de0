"""Feature levels: the maps that a head reads, each with its stride, what of it is padding, and its position encoding.

A head of one level and one of several work on the same tensors: tokens of all levels stand one after the other, finest
level first, and with one level nothing is copied.
Shapes: B images, h x w positions of a level, S of all levels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .folded_bias import FoldedBias, fold, folds, hidden
from .position_encoding import Extent


@dataclass(frozen=True)
class Level:
    """One feature map of a batch.

    stride: pixels of an image to a position; features: [B, C, h, w]; cover: how much of the map each image covers;
    position: [B, h * w, C] encoding.
    """

    stride: int
    features: Tensor
    cover: Extent
    position: Tensor


def tokens_of(levels: Sequence[Level]) -> Tensor:
    """[B, S, C]."""
    return _joined([level.features.flatten(2).transpose(1, 2) for level in levels])


def positions_of(levels: Sequence[Level]) -> Tensor:
    """[B, S, C]."""
    return _joined([level.position for level in levels])


def bias_of(levels: Sequence[Level], head: int) -> Tensor | FoldedBias | None:
    """What hides padding from attention by heads of `head` dimensions; None where nothing is padded.

    [B, 1, 1, S], -inf on padding and else 0, or the same folded, with PADDED instead of -inf.
    """
    if not any(level.cover.padded for level in levels):
        return None
    padding, features = _joined([level.cover.padding() for level in levels]), levels[0].features
    if folds(features):
        key = hidden(padding)
        return fold([(torch.ones_like(key[:1, :, :1]), key)], head, features.dtype)
    allowed = torch.zeros_like(padding, dtype=features.dtype)
    return allowed.masked_fill_(padding, -torch.inf)[:, None, None]


def by_stride(levels: Sequence[Level], weights: Tensor) -> dict[int, Tensor]:
    """[..., S] of all positions as one [..., h, w] for each level, under its stride."""
    grids = [(level.cover.height, level.cover.width) for level in levels]
    parts = weights.split([height * width for height, width in grids], dim=-1)
    return {level.stride: part.unflatten(-1, grid) for level, part, grid in zip(levels, parts, grids, strict=True)}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
