"""Multi-head attention, batch first, on fused kernels where there are some (Vaswani et al. 2017).

Shapes: B images, L queries, S keys, C width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_weights import attention_weights
from .cpu.attention import dropping_attention
from .folded_bias import FoldedBias


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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | FoldedBias | None = None) -> Tensor:
        """[B, L, C] attending to [B, S, C].

        bias: added to the logits, folded or as what broadcasts to [B, h, L, S], or a bool mask that is True where
        attention is allowed.
        When query and key are one tensor, they are projected together.
        """
        q, k, v = self._project(query, key, value)
        rate = self.dropout if self.training else 0.0
        if isinstance(bias, FoldedBias):
            # Flash kernels want values of the same width.
            width, (q, k) = v.shape[-1], bias.extend(q, k)
            v = F.pad(v, (0, q.shape[-1] - width))
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=bias.scale)[..., :width]
        elif rate and q.device.type == "cpu":
            mixed = dropping_attention(q, k, v, bias, rate)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, bias: Tensor | FoldedBias | None = None) -> Tensor:
        """[B, h, L, S] attention weights, to be shown; dropout is not applied."""
        q, k, _ = self._project(query, key, key)
        return attention_weights(q, k, bias.unfolded() if isinstance(bias, FoldedBias) else bias)

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
