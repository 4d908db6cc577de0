"""The weights of attention, written out: softmax of scaled products."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """[B, h, L, S] attention weights, in float32 or wider; q and k are [B, h, tokens, C / h]."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
