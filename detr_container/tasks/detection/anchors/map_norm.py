"""A LayerNorm over the channels of a feature map."""

from __future__ import annotations

from torch import Tensor, nn


class MapNorm(nn.LayerNorm):
    """[B, C, h, w] to the same, each position normalised over its channels."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
