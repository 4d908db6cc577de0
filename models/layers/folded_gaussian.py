"""Gaussians over a feature map whose axes do not mix, folded into queries and keys (see `folded_bias`).

Along an axis -a (x - c)^2 = 2 a c x - a x^2 + a number that softmax ignores: x, and x^2 in two parts, are exact in
bfloat16. The gradient of a would be a small difference of large sums over x^2 and x, which kernels round to bfloat16.
So it is taken from sums over (x - m)^2, where m is the nearest of some nodes: products of their own, whose value is 0.
Shapes: B images, h heads, L queries, H x W positions of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .folded_bias import FoldedBias, fold, hidden, in_parts
from .position_encoding import Extent

LONGEST = 512
"""Positions a side that bfloat16 holds exactly, counted from the middle, and whose squares it holds in two parts."""
_APART = 16
"""Distance of nodes: squares of distances to the nearest are exact in bfloat16 as far as the Gaussian is large."""


@dataclass(frozen=True)
class Places:
    """What the positions of a map have of the products; made once for all layers.

    values: [1, 1, H * W, products] for the Gaussian; slopes: the same for its gradient; padding: `hidden`, or None.
    """

    cover: Extent
    values: Tensor
    slopes: Tensor
    padding: Tensor | None

    def fold(self, x: Tensor, y: Tensor, steep_x: Tensor, steep_y: Tensor, head: int, dtype: torch.dtype) -> FoldedBias:
        """-steep_x (x - column)^2 - steep_y (y - row)^2 and the padding, for heads of `head` dimensions of `dtype`.

        x, y, steep_x, steep_y: [B, h, L] float32.
        """
        of_x, nodes_x, slope_x, rest_x = _products(x, steep_x, self.cover.width)
        of_y, nodes_y, slope_y, rest_y = _products(y, steep_y, self.cover.height)
        root = head**0.5
        values = in_parts(root * torch.stack((*of_x, *of_y), dim=-1).detach(), dtype)
        slopes = torch.cat((nodes_x, nodes_y, torch.stack((slope_x, slope_y, rest_x + rest_y), dim=-1)), dim=-1)
        # 0, but for the gradient.
        products = [*((part, self.values) for part in values), (root * (slopes - slopes.detach()), self.slopes)]
        if self.padding is not None:
            products.append((torch.ones_like(values[0][..., :1]), self.padding))
        return fold(products, head, dtype)


def places(cover: Extent) -> Places:
    """The places of a map, at most `LONGEST` positions a side."""
    x, y = (_line(length, cover.rows.device) for length in (cover.width, cover.height))
    of_x, of_y = (torch.stack((line, *_square(line)), dim=-1) for line in (x, y))
    from_x, from_y = (
        (line[:, None] - _nodes(length, line.device)).square() for line, length in ((x, cover.width), (y, cover.height))
    )

    def everywhere(along_x: Tensor, along_y: Tensor) -> list[Tensor]:
        """[W, n] and [H, m] as [1, 1, H * W, n] and [1, 1, H * W, m]."""
        rows, columns = (cover.height, -1, -1), (-1, cover.width, -1)
        return [each.flatten(0, 1)[None, None] for each in (along_x.expand(rows), along_y[:, None].expand(columns))]

    values = torch.cat(everywhere(of_x, of_y), dim=-1)
    straight = torch.cat(everywhere(x[:, None], y[:, None]), dim=-1)
    slopes = torch.cat((*everywhere(from_x, from_y), straight, torch.ones_like(straight[..., :1])), dim=-1)
    return Places(cover, values, slopes, hidden(cover.padding()) if cover.padded else None)


def _products(peak: Tensor, steep: Tensor, length: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Along an axis: what queries multiply x and both parts of x^2 with.

    And for the gradient what they multiply the squared distances to the nodes with, [..., nodes], x, and 1.
    """
    with torch.no_grad():
        nearest = _APART * (peak.clamp(0, length - 1) / _APART).floor() + _APART // 2 - length // 2
        near = nearest[..., None] == _nodes(length, peak.device)
    peak = peak - length // 2
    # -a (x - c)^2 = -a (x - m)^2 + 2 a (c - m) x + a (m^2 - c^2)
    slope = 2 * steep * (peak - nearest)
    return [2 * steep * peak, -steep, -steep], near * -steep[..., None], slope, -slope * (peak + nearest) / 2


def _line(length: int, device: torch.device) -> Tensor:
    """Places along an axis, counted from its middle, so that squares are small."""
    return torch.arange(length, device=device, dtype=torch.float32) - length // 2


def _nodes(length: int, device: torch.device) -> Tensor:
    """Nodes along an axis, counted from its middle."""
    return torch.arange(_APART // 2, length + _APART // 2, _APART, device=device, dtype=torch.float32) - length // 2


def _square(line: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers that bfloat16 holds and whose sum is the square."""
    square = line.square()
    large = square.bfloat16().float()
    return large, square - large
