"""Attention with dropout of its weights, for which a CPU has no fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention_weights import attention_weights
from .dropout import draw, drop


class _DroppingAttention(torch.autograd.Function):
    """See `dropping_attention`.

    The [B, h, L, S] weights of all layers would be most of what is kept for the gradient. They are made again, which is
    cheaper than the memory; what was dropped is kept, a byte each.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float) -> Tensor:
        weights = attention_weights(q, k, bias)
        keep = draw(weights.shape, rate)
        ctx.save_for_backward(q, k, v, bias, keep)
        ctx.rate = rate
        return drop(weights, keep, rate).to(v.dtype) @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, keep = ctx.saved_tensors
        weights = attention_weights(q, k, bias)
        to_v = drop(weights, keep, ctx.rate).to(v.dtype).transpose(-2, -1) @ gradient
        to_weights = drop((gradient @ v.transpose(-2, -1)).to(weights.dtype), keep, ctx.rate)
        to_logits = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_bias = to_logits.sum_to_size(bias.shape).to(bias.dtype) if ctx.needs_input_grad[3] else None
        to_logits, scale = to_logits.to(q.dtype), q.shape[-1] ** -0.5
        return to_logits @ (k * scale), to_logits.transpose(-2, -1) @ (q * scale), to_v, to_bias, None


def dropping_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float) -> Tensor:
    """softmax(q k^T / sqrt(C / h) + bias) v with dropout of the softmax; q, k, v: [B, h, tokens, C / h]."""
    # Autocast has cast q, k and v already; the softmax is kept in float32 by the function itself.
    with torch.autocast("cpu", enabled=False):
        return _DroppingAttention.apply(q, k, v, bias, rate)
