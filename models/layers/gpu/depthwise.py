"""Depthwise convolutions without cuDNN, which searches for the fastest of its kernels at every new shape of a map.

That search took over 2 s a shape, for kernels that were slower at copying channels-last maps than at computing. What
replaces them: kernels of our own (see `depthwise_kernels`) for stride 1 and odd square windows, PyTorch's for others.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_log = logging.getLogger(__name__)
_FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Geometry(NamedTuple):
    """Of a convolution, rows and columns each."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class _Fused(torch.autograd.Function):
    """Convolution of [B, h, w, C] with windows [C, 1, K, K], plus x (`residual`), by the Triton kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
        from .depthwise_kernels import correlate

        # Tap by tap, so that neighbouring channels' weights lie side by side as their values do.
        taps = weight.flatten(1).t().contiguous()
        ctx.save_for_backward(x, taps)
        ctx.shape, ctx.residual, ctx.bias_type = weight.shape, residual, None if bias is None else bias.dtype
        return correlate(x, taps, bias, residual=residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from .depthwise_kernels import correlate, parameter_gradients

        x, taps = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x, to_weight, to_bias = None, None, None
        if ctx.needs_input_grad[0]:
            to_x = correlate(gradient, taps, None, flip=True, residual=ctx.residual)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            windows, sums = parameter_gradients(x, gradient, ctx.shape[-1])
            to_weight = windows.view(ctx.shape).to(taps.dtype)
            to_bias = None if ctx.bias_type is None else sums.to(ctx.bias_type)
        return to_x, to_weight, to_bias, None


class _Native(torch.autograd.Function):
    """Convolution of [B, C, h, w] by PyTorch's own depthwise kernels, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        # They read and write contiguous tensors only.
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.biased = geometry, bias is not None
        with _without_cudnn():
            return torch.ops.aten.convolution(x, weight, bias, *geometry, False, [0, 0], x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biased and ctx.needs_input_grad[2]]
        channels = x.shape[1]
        with _without_cudnn():
            gradients = torch.ops.aten.convolution_backward(
                gradient.contiguous(), x, weight, [channels], *ctx.geometry, False, [0, 0], channels, wanted
            )
        return *(each if asked else None for each, asked in zip(gradients, wanted, strict=True)), None


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # Not `cudnn.flags`: that one sets TF32 and benchmark too.
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, residual: bool = False) -> Tensor:
    """A depthwise convolution of [B, C, h, w] with windows [C, 1, rows, columns], plus x when `residual`.

    Under autocast, x is cast; weight and bias may be of its type or float32. Channels-last maps stay so.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    # Within the functions autocast would cast a second time, and out of sight of the gradient.
    with torch.autocast(device, enabled=False):
        if _fits(x, weight, geometry) and refusal(device) is None:
            fused: Tensor = _Fused.apply(x.permute(0, 2, 3, 1), weight, bias, residual)
            return fused.permute(0, 3, 1, 2)
        y: Tensor = _Native.apply(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), geometry)
        y = y.contiguous(memory_format=torch.channels_last)
        # The first one's layout is the sum's.
        return y + x if residual else y


def _fits(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the Triton kernels compute this convolution."""
    k = weight.shape[-1]
    return (
        weight.shape == (x.shape[1], 1, k, k)
        and k % 2 == 1
        and geometry == ((1, 1), (k // 2, k // 2), (1, 1))
        and x.dtype in _FUSED_TYPES
        # Offsets within an image have 32 bits; three maps may lie side by side.
        and x.numel() > 0
        and 3 * x[0].numel() < 2**31
    )


@lru_cache
def refusal(device: str) -> str | None:
    """Why the Triton kernels cannot be used on such a device, logged once; None if they can, which is tried."""
    reason = ""
    failures: tuple[type[Exception], ...] = (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError)
    try:
        from triton import TritonError

        failures = (*failures, TritonError)
        if not _right(device):
            reason = "Triton's kernels give wrong values there"
    except failures as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason:
        _log.warning("Depthwise convolutions use PyTorch's kernels on %s, which are slower: %s", device, reason)
    return reason or None


@torch.inference_mode(False)
@torch.enable_grad()
def _right(device: str) -> bool:
    """Whether the Triton kernels compute what PyTorch does on the CPU, and its gradient of the windows."""
    from .depthwise_kernels import correlate, parameter_gradients

    generator = torch.Generator().manual_seed(0)
    x, taps = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 9, 16), (9, 16)))
    windows = taps.t().reshape(16, 1, 3, 3).requires_grad_()
    expected = F.conv2d(x.permute(0, 3, 1, 2), windows, padding=1, groups=16).permute(0, 2, 3, 1)
    (slope,) = torch.autograd.grad(expected.square().sum() / 2, windows)
    found = correlate(x.to(device), taps.to(device), None)
    gradient, _ = parameter_gradients(x.to(device), found, 3)
    return torch.allclose(found.cpu(), expected.detach(), atol=1e-4) and torch.allclose(
        gradient.cpu(), slope.flatten(1), rtol=1e-4, atol=1e-3
    )
