"""A convolution and the frozen norm after it, or before it, as one convolution.

A frozen norm is y = x * scale + shift per channel, so conv(x) * scale + shift = conv'(x) with scaled kernels and the
shift as a bias: one pass over the feature map instead of three, and two temporaries fewer. Before a 1 x 1 kernel, which
sees no padding, W (x * scale + shift) + b = (W scale) x + (b + W shift) likewise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cpu.convolution import kernel_gradient
from .frozen_norm import FrozenNorm


class _FoldedConv(torch.autograd.Function):
    """conv(x) * scale + shift with scaled kernels.

    In the weights' own type they are made again for the gradient rather than kept for it; narrower ones are kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, conv: nn.Conv2d) -> Tensor:
        kernel = _scaled(weight, scale, x.dtype)
        ctx.save_for_backward(x, weight, scale, None if x.dtype == weight.dtype else kernel)
        ctx.geometry = (list(conv.stride), list(conv.padding), list(conv.dilation))
        return F.conv2d(x, kernel, shift, conv.stride, conv.padding, conv.dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, kernel = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if kernel is None and (wanted[0] or not on_cpu(x)):
            kernel = _scaled(weight, scale, x.dtype)
        if on_cpu(x):
            to_x = _gradients(gradients[0], x, kernel, ctx.geometry, (True, False))[0] if wanted[0] else None
            to_weight = kernel_gradient(gradients[0], x, weight, ctx.geometry) if wanted[1] else None
        else:
            to_x, to_weight = _gradients(gradients[0], x, kernel, ctx.geometry, wanted)
        if to_weight is not None:
            # Into the parameter's own layout, or it would be copied there afterwards.
            to_weight = torch.mul(to_weight, scale, out=torch.empty_like(weight))
        return to_x, to_weight, None, None, None


def on_cpu(x: Tensor) -> bool:
    """Whether to compute as is fastest on a CPU."""
    return x.device.type == "cpu"


def _scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The kernels in a type, by one operation."""
    return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))


def _gradients(
    gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[list[int], ...], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a convolution with respect to its input and, for which values do not count, its kernel."""
    found = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, *geometry, False, [0, 0], 1, [*wanted, False]
    )
    return found[0], found[1]


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """norm(conv(x)), as one convolution when the norm is frozen."""
    if not isinstance(norm, FrozenNorm):
        return norm(conv(x))
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    # Within the function autocast would cast a second time, and out of sight of the gradient.
    with torch.autocast(device, enabled=False):
        return _FoldedConv.apply(x, conv.weight, norm.scale[:, None, None, None], norm.of_type(x.dtype)[1], conv)


class _FoldBefore(torch.autograd.Function):
    """W scale and b + W shift, of W [outputs, inputs, 1, 1] and b; `kind`: the type of both."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, scale, shift)
        ctx.of_bias = bias.dtype
        kernel = _scaled(weight, scale[:, None, None], kind)
        wide = scale.dtype
        return kernel, torch.addmv(bias.to(wide), weight.flatten(1).to(wide), shift).to(kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, shift = ctx.saved_tensors
        to_kernel, to_bias = gradients
        to_weight = None
        if ctx.needs_input_grad[0]:
            # Into the parameter's own layout, as above.
            wide = torch.mul(to_kernel, scale[:, None, None], out=torch.empty_like(weight, dtype=scale.dtype))
            wide.addcmul_(to_bias[:, None, None, None].to(scale.dtype), shift[:, None, None])
            to_weight = wide.to(weight.dtype)
        return to_weight, to_bias.to(ctx.of_bias), None, None, None


def fold_norm_before(weight: Tensor, bias: Tensor, norm: FrozenNorm) -> tuple[Tensor, Tensor]:
    """Kernel and bias of conv(norm(x)) as one convolution; weight, bias: of a convolution with 1 x 1 kernels."""
    device = weight.device.type
    kind = torch.promote_types(weight.dtype, norm.scale.dtype)
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _FoldBefore.apply(weight, bias, norm.scale, norm.shift, kind)
