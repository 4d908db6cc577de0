"""The body of the plain networks: timm's vision transformer, with blocks that aggregate by dense affinities."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

from ..layers.context_aggregation import ContextAggregation
from ..layers.dense_affinity import Grid
from .plain import PlainSize


class TokenAggregation(nn.Module):
    """Context aggregation of tokens between two linear layers, under the names of timm's attention.

    qkv: makes query, key and value, or the value alone where there is no attention.
    """

    def __init__(self, channels: int, aggregation: ContextAggregation) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, aggregation.expansion * channels)
        self.aggregation = aggregation
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[B, leading + N, C] to the same; grid: rows and columns of the N positions."""
        y: Tensor = self.proj(self.aggregation.of_tokens(self.qkv(x), grid))
        return y


class PlainBlock(nn.Module):
    """x += aggregation; x += MLP, both after a norm and with stochastic depth; under the names of timm's block."""

    def __init__(self, channels: int, aggregation: ContextAggregation, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.attn = TokenAggregation(channels, aggregation)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop) if drop else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[B, leading + N, C] to the same."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


def make_body(size: PlainSize, side: int, drop_path: float) -> VisionTransformer:
    """A vision transformer without classifier for square images of `side` pixels; weights are drawn as DeiT's."""
    body = VisionTransformer(
        img_size=side,
        patch_size=size.patch,
        num_classes=0,
        # Whoever pools does it after the norm.
        global_pool="token" if size.tokens else "avg",
        fc_norm=False,
        embed_dim=size.channels,
        depth=0,
        class_token=size.tokens,
        pos_embed="learn" if size.tokens else "none",
        dynamic_img_size=True,
    )
    blocks, grid = [], size.built_for(side)
    for drop in torch.linspace(0, drop_path, size.blocks).tolist():
        aggregation = ContextAggregation(
            size.channels, size.affinities, size.heads, grid=grid, leading=int(size.tokens), std=size.std
        )
        blocks.append(PlainBlock(size.channels, aggregation, drop))
    body.blocks = nn.Sequential(*blocks).apply(init_weights_vit_timm)
    return body
