"""Dropout whose random numbers and masks do not cost a CPU more than what they drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16


def _dropped(p: float) -> int:
    """How many of the 2^16 values of 16 random bits drop an element; never all."""
    return min(round(p * LEVELS), LEVELS - 1)


def _scale(p: float) -> float:
    return LEVELS / (LEVELS - _dropped(p))


def draw(shape: Sequence[int], p: float) -> Tensor:
    """Which elements to keep, on the CPU: uint8 of `shape`, 0 with probability `p` and else 1.

    Every 64 random bits decide for four elements, so `p` is rounded to a multiple of 2^-16.
    """
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[:count] >= _dropped(p) - LEVELS // 2).view(torch.uint8).view(shape)


def drop(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """`x` where `keep` is 1, scaled by 1 / (1 - p); zero elsewhere."""
    # Multiplying by bool took ten times as long: it is converted to float without vector instructions.
    return keep.to(x.dtype).mul_(_scale(p)).mul_(x)


class _Dropout(torch.autograd.Function):
    """Keeps one byte an element for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = draw(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.p = p
        return drop(x, keep, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return drop(gradient, ctx.saved_tensors[0], ctx.p), None


class _DroppedReLU(torch.autograd.Function):
    """Keeps its output alone, which the linear layer after it keeps in any case: what it zeroed has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        out = drop(x, draw(x.shape, p), p).clamp_min_(0)
        ctx.save_for_backward(out)
        ctx.p = p
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.aten.threshold_backward(gradient, ctx.saved_tensors[0], 0).mul_(_scale(ctx.p)), None


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element of `x` with probability `p` and scale the others by 1 / (1 - p)."""
    return _Dropout.apply(x, p)


def dropped_relu(x: Tensor, p: float) -> Tensor:
    """Dropout of ReLU(x)."""
    return _DroppedReLU.apply(x, p)
