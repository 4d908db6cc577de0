"""Affinities: how a position of a feature map draws on the others (Gao et al. 2021, "Container", equations 1 to 5).

With V the values of N = h * w positions in M heads, Y_m = (alpha_m A_m(X) + beta_m A'_m) V_m: a dynamic affinity A(X)
is made from the input (self-attention), a static A' is learned and the same for every input (a convolution's kernel, or
any N x N numbers). Which of them there are and how they are weighed are settings; self-attention, depthwise convolution
and mixing by an MLP are some of them.

Shapes: B images, C channels, M heads of C / M neighbouring channels, N positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense_affinity import DenseAffinity, Grid
from .depthwise import Depthwise, HeadDepthwise


@dataclass(frozen=True)
class Affinities:
    """Which affinities are added up, and how they are weighed.

    dynamic: softmax(Q K^T / sqrt(C / M)); static: a window around each position, whose numbers depend on the offset
    alone, for each `channel` or for each `head`, or `dense`: N x N numbers for each head, for one size of map.
    weighing, of two: their `sum` (alpha = beta = 1); alpha and beta `learned` for each head, 0.5 at first; or one
    learned `gate` g, with alpha = g and beta = 1 - g.
    """

    dynamic: bool = False
    static: Literal["none", "channel", "head", "dense"] = "none"
    weighing: Literal["sum", "learned", "gate"] = "sum"

    def __post_init__(self) -> None:
        if not self.dynamic and self.static == "none":
            raise ValueError("an aggregation needs an affinity: a dynamic one, a static one, or both")
        if self.weighing != "sum" and not self.both:
            raise ValueError(f"weighing={self.weighing!r} weighs two affinities, but there is only one")

    @property
    def both(self) -> bool:
        """Whether there is a dynamic one and a static one."""
        return self.dynamic and self.static != "none"


SELF_ATTENTION = Affinities(dynamic=True)
DEPTHWISE = Affinities(static="channel")
MH_DW = Affinities(static="head")
MH_MLP = Affinities(static="dense")
# As published; there is no alpha or beta in it.
CONTAINER_PAM = Affinities(dynamic=True, static="dense")
CONTAINER = Affinities(dynamic=True, static="channel", weighing="learned")
# As its authors released it.
CONTAINER_LIGHT = Affinities(dynamic=True, static="channel", weighing="gate")


class ContextAggregation(nn.Module):
    """(alpha A(X) + beta A') V; a window's A' V has a bias.

    expansion: how many C-channel tensors it wants side by side as input: query, key and value, or the value alone.
    """

    def __init__(
        self,
        channels: int,
        affinities: Affinities,
        heads: int = 1,
        window: int = 5,
        grid: Grid = (0, 0),
        leading: int = 0,
        std: float = 1.0,
    ) -> None:
        """window: positions to a side of a static window; grid, leading, std: see `DenseAffinity`."""
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide by {heads} heads")
        self.affinities, self.heads = affinities, heads
        self.expansion = 3 if affinities.dynamic else 1
        if affinities.both:
            alone = replace(affinities, dynamic=False, weighing="sum")
            self.static = ContextAggregation(channels, alone, heads, window, grid, leading, std)
        elif affinities.static == "channel":
            self.kernel: nn.Module = Depthwise(channels, window)
        elif affinities.static == "head":
            self.kernel = HeadDepthwise(channels, window, heads)
        elif affinities.static == "dense":
            self.kernel = DenseAffinity(heads, grid, leading, std)
        if affinities.weighing == "gate":
            self.mix = nn.Parameter(torch.zeros(1))
        elif affinities.weighing == "learned":
            self.alpha, self.beta = (nn.Parameter(torch.full((heads,), 0.5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, expansion * C, h, w] to [B, C, h, w]."""
        if self.affinities.static == "dense":
            rows, columns = x.shape[-2:]
            return (
                self.of_tokens(x.flatten(2).transpose(1, 2), (rows, columns)).transpose(1, 2).unflatten(2, (rows, -1))
            )
        if not self.affinities.dynamic:
            y: Tensor = self.kernel(x)
            return y
        query, key, value = side_by_side(x)
        if not self.affinities.both:
            return self._attend(query, key, value)
        static = self.static(value.permute(0, 3, 1, 2))
        return self._weighed(self._attend(query, key, value), static, value.shape[-1] // self.heads)

    def of_tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """[B, leading + N, expansion * C] to [B, leading + N, C], of a map of this size; not for windows."""
        assert self.affinities.static in ("none", "dense")
        parts = x.unflatten(2, (self.expansion, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        value = parts[-1]
        y = F.scaled_dot_product_attention(*parts) if self.affinities.dynamic else self.kernel(value, grid)
        if self.affinities.both:
            y = self._weighed(y, self.static.kernel(value, grid), 1)
        return y.transpose(1, 2).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, h, w, C] each to [B, C, h, w]."""
        heads = (each.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
        mixed = F.scaled_dot_product_attention(*heads)
        return mixed.transpose(1, 2).flatten(2).unflatten(1, query.shape[1:3]).permute(0, 3, 1, 2)

    def _weighed(self, dynamic: Tensor, static: Tensor, each: int) -> Tensor:
        """Both affinities' results, weighed; each: places in dimension 1 that belong to one head."""
        if self.affinities.weighing == "sum":
            return dynamic + static
        if self.affinities.weighing == "gate":
            return torch.lerp(static, dynamic, self.mix.sigmoid().to(static.dtype))
        alpha, beta = (w.to(static.dtype).repeat_interleave(each)[:, None, None] for w in (self.alpha, self.beta))
        return dynamic * alpha + static * beta


def side_by_side(qkv: Tensor) -> tuple[Tensor, ...]:
    """[B, 3 * C, h, w] to query, key and value [B, h, w, C]: views, and one gradient for all."""
    return qkv.permute(0, 2, 3, 1).unflatten(3, (3, -1)).unbind(3)
