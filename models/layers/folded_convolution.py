"""A convolution and the frozen norm after it as one convolution.

A frozen norm is y = x * scale + shift per channel, so conv(x) * scale + shift = conv'(x) with scaled kernels and the
shift as a bias: one pass over the feature map instead of three, and two temporaries fewer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu.convolution import kernel_gradient
from .frozen_norm import FrozenNorm


class _FoldedConv(torch.autograd.Function):
    """conv(x) * scale + shift with scaled kernels, which are made again for the gradient rather than kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation))
        kernel = (weight * scale).to(x.dtype)
        return F.conv2d(x, kernel, shift.to(x.dtype), conv.stride, conv.padding, conv.dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        to_x, to_weight = None, None
        if ctx.needs_input_grad[0]:
            kernel = (weight * scale).to(x.dtype)
            to_x = _gradient(gradients[0], x, kernel, ctx.geometry, of_kernel=False)
        if ctx.needs_input_grad[1]:
            if x.device.type == "cpu":
                to_weight = kernel_gradient(gradients[0], x, weight, ctx.geometry)
            else:
                to_weight = _gradient(gradients[0], x, weight.to(x.dtype), ctx.geometry, of_kernel=True)
            # Into the parameter's own layout, or it would be copied there afterwards.
            to_weight = torch.mul(to_weight.to(weight.dtype), scale, out=torch.empty_like(weight))
        return to_x, to_weight, None, None, None


def _gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[list[int], ...], of_kernel: bool) -> Tensor:
    """The gradient of a convolution with respect to its kernel or to its input."""
    which = [not of_kernel, of_kernel, False]
    gradients = torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, False, [0, 0], 1, which)
    return gradients[int(of_kernel)]


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """norm(conv(x)), as one convolution when the norm is frozen."""
    if not isinstance(norm, FrozenNorm):
        return norm(conv(x))
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    # Within the function autocast would cast a second time, and out of sight of the gradient.
    with torch.autocast(device, enabled=False):
        return _FoldedConv.apply(x, conv.weight, norm.scale[:, None, None, None], norm.shift, conv)
