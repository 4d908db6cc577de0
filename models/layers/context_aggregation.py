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


class StaticAggregation(nn.Module):
    """A depthwise convolution: A depends on the offset of two positions alone, and is zero outside the window."""

    expansion = 1

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

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
        tokens = qkv.flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-2, -1)
        query, key, value = tokens.unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(-2, -1).flatten(1, 2).unflatten(-1, qkv.shape[-2:])


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
        value = qkv.chunk(3, dim=1)[2]
        return torch.lerp(self.static(value), self.dynamic(qkv), self.mix.sigmoid().to(qkv.dtype))
