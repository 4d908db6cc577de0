"""Affinities: how a position of a feature map draws on the others (Gao et al. 2021, "Container", equations 1 to 5).

With V the values of N = h * w positions, every module here computes A V for some N x N affinity A: a dynamic A is made
from the input (self-attention), a static A is learned and the same for every input (a convolution's kernel).
Each module states `expansion`, the number of C-channel tensors it wants side by side as input, and maps
[B, expansion * C, h, w] to [B, C, h, w].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depthwise import Depthwise


class StaticAggregation(nn.Module):
    """A depthwise convolution: A depends on the offset of two positions alone, and is zero outside the window."""

    expansion = 1

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.kernel = Depthwise(channels, kernel)

    def forward(self, value: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return self.kernel(value)


class DynamicAggregation(nn.Module):
    """Self-attention over all positions; query, key and value come side by side, and nothing here is learned."""

    expansion = 3

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide by {heads} heads")
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, 3 * C, h, w] to [B, C, h, w]."""
        return self.of(*side_by_side(qkv))

    def of(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, h, w, C] each to [B, C, h, w]."""
        heads = (each.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
        mixed = F.scaled_dot_product_attention(*heads)
        return mixed.transpose(1, 2).flatten(2).unflatten(1, query.shape[1:3]).permute(0, 3, 1, 2)


class MixedAggregation(nn.Module):
    """CONTAINER-LIGHT's last stage: g A_dynamic V + (1 - g) A_static V, with one learned g in (0, 1) per block."""

    expansion = 3

    def __init__(self, channels: int, heads: int, kernel: int = 5) -> None:
        super().__init__()
        self.dynamic = DynamicAggregation(channels, heads)
        self.static = StaticAggregation(channels, kernel)
        self.mix = nn.Parameter(torch.zeros(1))

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, 3 * C, h, w] to [B, C, h, w]."""
        query, key, value = side_by_side(qkv)
        static, dynamic = self.static(value.permute(0, 3, 1, 2)), self.dynamic.of(query, key, value)
        return torch.lerp(static, dynamic, self.mix.sigmoid().to(static.dtype))


def side_by_side(qkv: Tensor) -> tuple[Tensor, ...]:
    """[B, 3 * C, h, w] to query, key and value [B, h, w, C]: views, and one gradient for all."""
    return qkv.permute(0, 2, 3, 1).unflatten(3, (3, -1)).unbind(3)
