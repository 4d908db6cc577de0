"""The transformer of DETR (Carion et al. 2020, figure 10), batch first, on fused attention.

Shapes: B pictures, S cells of the feature map, L queries, C width, h heads, D decoder layers.
Positions are added to queries and keys of every layer, never to values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dropout import Dropout, DroppedReLU, draw, drop


class Attention(nn.Module):
    """Multi-head attention with packed projections, laid out as `nn.MultiheadAttention` lays out its parameters."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide by {heads} heads: set head.width or head.heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, L, C] attending to [B, S, C].

        bias: added to the logits, or a bool mask that is True where attention is allowed; broadcasts to [B, h, L, S].
        When query and key are one tensor, they are projected together.
        """
        q, k, v = self._project(query, key, value)
        rate = self.dropout if self.training else 0.0
        if rate and q.device.type == "cpu":
            # Autocast has cast q, k and v already; the softmax is kept in float32 by the function itself.
            with torch.autocast("cpu", enabled=False):
                mixed = _DroppingAttention.apply(q, k, v, bias, rate)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, h, L, S] attention weights, for looking at; dropout is not applied."""
        q, k, _ = self._project(query, key, key)
        return _weights(q, k, bias)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Projected query, key and value as [B, h, tokens, C / h]."""
        # Split, not sliced: the gradient of a slice is as large as what it was sliced from.
        sizes = [2 * query.shape[-1], query.shape[-1]] if query is key else 3 * [query.shape[-1]]
        weights, biases = self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes)
        sources = (query, value) if query is key else (query, key, value)
        projected = [F.linear(*each) for each in zip(sources, weights, biases, strict=True)]
        if query is key:
            projected[:1] = projected[0].chunk(2, dim=-1)
        return [tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in projected]


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """[B, h, L, S] attention weights, in float32 or wider; q and k are [B, h, tokens, C / h]."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class _DroppingAttention(torch.autograd.Function):
    """Attention with dropout of its weights, for which a CPU has no fused kernel.

    The [B, h, L, S] weights of all layers would be most of what is kept for the gradient. They are made again, which is
    cheaper than the memory; what was dropped is kept, a byte each.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float) -> Tensor:
        weights = _weights(q, k, bias)
        keep = draw(weights.shape, rate)
        ctx.save_for_backward(q, k, v, bias, keep)
        ctx.rate = rate
        return drop(weights, keep, rate).to(v.dtype) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, keep = ctx.saved_tensors
        weights = _weights(q, k, bias)
        to_v = drop(weights, keep, ctx.rate).to(v.dtype).transpose(-2, -1) @ gradient
        to_weights = drop((gradient @ v.transpose(-2, -1)).to(weights.dtype), keep, ctx.rate)
        to_logits = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_bias = to_logits.sum_to_size(bias.shape).to(bias.dtype) if ctx.needs_input_grad[3] else None
        to_logits, scale = to_logits.to(q.dtype), q.shape[-1] ** -0.5
        return to_logits @ (k * scale), to_logits.transpose(-2, -1) @ (q * scale), to_v, to_bias, None


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
    """Self-attention over the cells, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, feedforward, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None) -> Tensor:
        """x, position: [B, S, C]; bias as in `Attention`."""
        value = self.norm1(x) if self.pre_norm else x
        query = value + position
        x = x + self.dropout(self.self_attn(query, query, value, bias))
        if self.pre_norm:
            return x + self.dropout(self.ffn(self.norm2(x)))
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self.ffn(x)))


class DecoderLayer(nn.Module):
    """Self-attention over the queries, attention to the cells, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads, dropout)
        self.cross_attn = Attention(width, heads, dropout)
        self.ffn = FeedForward(width, feedforward, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, key: Tensor, bias: Tensor | None
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
    """What the decoder gives: states [D, B, L, C] after its final norm, and on request attention [D, B, h, L, S]."""

    states: Tensor
    attention: Tensor | None = None


class Encoder(nn.Module):
    """The encoder's layers; a final norm only where the layers norm first."""

    def __init__(self, layers: list[EncoderLayer], width: int, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None) -> Tensor:
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
        self, query_position: Tensor, memory: Tensor, position: Tensor, bias: Tensor | None, attention: bool = False
    ) -> Decoded:
        """query_position: [L, C]; memory, position: [B, S, C]."""
        key = memory + position
        x = torch.zeros_like(query_position, dtype=memory.dtype).expand(len(memory), -1, -1)
        states, maps = [], []
        for layer in cast(Iterable[DecoderLayer], self.layers):
            x, query = layer(x, query_position, memory, key, bias)
            states.append(self.norm(x))
            if attention:
                maps.append(layer.cross_attn.weights(query, key, bias))
        return Decoded(torch.stack(states), torch.stack(maps) if maps else None)


def initialise(transformer: nn.Module) -> None:
    """Xavier-uniform for every matrix of a transformer; vectors keep their module's own start."""
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
