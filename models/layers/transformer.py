"""The transformer of DETR (Carion et al. 2020, figure 10), batch first, on fused attention.

Shapes: B images, S tokens of the image, L queries, C width, h heads, D decoder layers.
Positions are added to queries and keys of every layer, never to values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .attention import Attention
from .dropout import Dropout, DroppedReLU
from .folded_bias import FoldedBias
from .layer_norm import LayerNorm, float32_norm


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = DroppedReLU(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return self.linear2(self.activation(self.linear1(x)))


class EncoderLayer(nn.Module):
    """Self-attention over the tokens, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, feedforward, dropout)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | FoldedBias | None) -> Tensor:
        """x, position: [B, S, C]; bias as in `Attention`."""
        value = self.norm1(x) if self.pre_norm else x
        query = value + position
        x = x + self.dropout(self.self_attn(query, query, value, bias))
        if self.pre_norm:
            return x + self.dropout(self.ffn(self.norm2(x)))
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self.ffn(x)))


class DecoderLayer(nn.Module):
    """Self-attention over the queries, attention to the tokens, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads, dropout)
        self.cross_attn = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, feedforward, dropout)
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, key: Tensor, bias: Tensor | FoldedBias | None
    ) -> tuple[Tensor, Tensor]:
        """One layer: the new queries [B, L, C], and what the cross-attention asked with, for `Attention.weights`.

        x: [B, L, C]; query_position: broadcasts to it; memory: [B, S, C]; key: memory + position; bias: to the
        cross-attention.
        """
        value = self.norm1(x) if self.pre_norm else x
        query = value + query_position
        x = x + self.dropout(self.self_attn(query, query, value))
        if not self.pre_norm:
            x = self.norm1(x)
        query = (self.norm2(x) if self.pre_norm else x) + query_position
        x = x + self.dropout(self.cross_attn(query, key, memory, bias))
        if self.pre_norm:
            return x + self.dropout(self.ffn(self.norm3(x))), query
        x = self.norm2(x)
        return self.norm3(x + self.dropout(self.ffn(x))), query


@dataclass
class Decoded:
    """What the decoder gives: float32 states [D, B, L, C] after its norm; on request attention [D, B, h, L, S]."""

    states: Tensor
    attention: Tensor | None = None


class Encoder(nn.Module):
    """The encoder's layers; a final norm only where the layers norm first."""

    def __init__(self, layers: list[EncoderLayer], width: int, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | FoldedBias | None) -> Tensor:
        """x, position: [B, S, C] to [B, S, C]."""
        for layer in self.layers:
            x = layer(x, position, bias)
        return self.norm(x)


class Decoder(nn.Module):
    """DETR's decoder: queries start at zero, and one norm is applied to every layer's output."""

    def __init__(self, layers: list[DecoderLayer], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        bias: Tensor | FoldedBias | None,
        attention: bool = False,
    ) -> Decoded:
        """query_position: [L, C]; memory, position: [B, S, C]."""
        key = memory + position
        # One for each image, so that the gradients of all layers are added up before they are over the images.
        query_position = query_position.to(memory.dtype).repeat(len(memory), 1, 1)
        x = torch.zeros_like(query_position)
        states, attention_maps = [], []
        for layer in cast(Iterable[DecoderLayer], self.layers):
            x, query = layer(x, query_position, memory, key, bias)
            states.append(x)
            if attention:
                attention_maps.append(layer.cross_attn.weights(query, key, bias))
        normed = float32_norm(self.norm, torch.stack(states))
        return Decoded(normed, torch.stack(attention_maps) if attention_maps else None)


def initialise(transformer: nn.Module) -> None:
    """Xavier-uniform for every matrix of a transformer; vectors keep their module's own start."""
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
