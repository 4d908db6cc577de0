"""A bias of attention logits that is a sum of products, folded into queries and keys as further dimensions of both.

SMCA's Gaussian is one, -a (c - x)^2 = 2 a c x - a x^2 - a c^2, and so is what hides padding. No [B, h, L, S] tensor is
made, and flash kernels, which take no bias, can be used.
Shapes: B images, h heads, L queries, S keys, d dimensions of a head, n products, m dimensions that they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PADDED = -1e30
"""Far below every logit, so that exp gives exactly 0, and as far from infinity, so that nothing becomes NaN."""
_MULTIPLE = 8
"""Fused kernels take heads of a multiple of so many dimensions."""


@dataclass(frozen=True)
class FoldedBias:
    """bias[b, h, l, s] = scale * sum over m of query[b, h, l, m] * key[b, 1, s, m]; B, h and L may be broadcast."""

    query: Tensor
    key: Tensor
    scale: float

    def extend(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, h, L, d] and keys [B, h, S, d] as [..., d + m]: `scale` times their product is biased."""
        return _longer(q, self.query), _longer(k, self.key)

    def unfolded(self) -> Tensor:
        """The bias itself, up to a number for each query; float32, broadcasts to [B, h, L, S]."""
        # In float64, which neither autocast nor TF32 shortens.
        return (self.query.double() @ self.key.double().transpose(-2, -1)).mul(self.scale).float()


def folds(features: Tensor) -> bool:
    """Whether attention to `features` gets its bias folded: in bfloat16 on a GPU, nowhere else.

    There kernels that take a bias are the slow ones, and round it to bfloat16. In float32 the fold errs by up to 2e-4
    where Gaussians are steep, in TF32 by far more. On a CPU it takes longer in float32, and bfloat16 rounds the logits.
    """
    return features.device.type == "cuda" and features.dtype == torch.bfloat16


def fold(products: Sequence[tuple[Tensor, Tensor]], head: int, dtype: torch.dtype) -> FoldedBias:
    """Products whose sum is sqrt(head) times the bias, for heads of `head` dimensions of type `dtype`.

    Each is a query [B, h, L, n] and a key [B, 1, S, n], of which all but n may be broadcast; both are
    rounded to `dtype`.
    """
    queries, keys = ([each[side].to(dtype) for each in products] for side in (0, 1))
    missing = (0, -(head + sum(key.shape[-1] for key in keys)) % _MULTIPLE)
    return FoldedBias(F.pad(_side_by_side(queries), missing), F.pad(_side_by_side(keys), missing), head**-0.5)


def hidden(padding: Tensor) -> Tensor:
    """[B, S] bool, True on padding, as a key [B, 1, S, 1] that, with queries of 1, hides it."""
    return padding[:, None, :, None] * PADDED


def in_parts(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Numbers that add up to x and that `dtype` holds, the largest first: three of bfloat16 make a float32."""
    parts = [x.to(dtype)]
    if torch.finfo(dtype).bits < torch.finfo(x.dtype).bits:
        for _ in range(2):
            x = x - parts[-1]
            parts.append(x.to(dtype))
    return parts


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1)


def _longer(tokens: Tensor, more: Tensor) -> Tensor:
    return torch.cat((tokens, more.to(tokens.dtype).expand(*tokens.shape[:-1], -1)), dim=-1)
