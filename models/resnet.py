"""ResNet (He et al. 2016) from torchvision, with its norms folded into its convolutions when they are frozen.

A frozen norm is y = x * scale + shift per channel, so conv(x) * scale + shift = conv'(x) with scaled kernels and the
shift as a bias: one pass over the feature map instead of three, and two temporaries fewer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from .backbone import Backbone
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
            to_weight = _kernel_gradient(gradients[0], x, weight, ctx.geometry)
            # Into the parameter's own layout, or it would be copied there afterwards.
            to_weight = torch.mul(to_weight.to(weight.dtype), scale, out=torch.empty_like(weight))
        return to_x, to_weight, None, None, None


def _gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[list[int], ...], of_kernel: bool) -> Tensor:
    """The gradient of a convolution with respect to its kernel or to its input."""
    wanted = [not of_kernel, of_kernel, False]
    gradients = torch.ops.aten.convolution_backward(gradient, x, kernel, None, *geometry, False, [0, 0], 1, wanted)
    return gradients[int(of_kernel)]


def _kernel_gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: tuple[list[int], ...]) -> Tensor:
    """The gradient with respect to the kernel, by the way that is fastest where it is computed.

    A CPU is faster with channels last at everything but this, which took it a third longer than here.
    """
    if x.device.type != "cpu":
        return _gradient(gradient, x, kernel.to(x.dtype), geometry, of_kernel=True)
    if kernel.shape[2:] == (1, 1):
        stride = geometry[0][0]
        rows = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).flatten(0, 2)
        return (gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ rows)[:, :, None, None]
    # Of the kernel only the shape and the layout are asked for.
    shaped = torch.empty(kernel.shape, dtype=x.dtype)
    return _gradient(gradient.contiguous(), x.contiguous(), shaped, geometry, of_kernel=True)


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


class _Basic(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else conv_norm(x, self.downsample[0], self.downsample[1])
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        return F.relu(conv_norm(out, self.conv2, self.bn2).add_(identity), inplace=True)


class _Bottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else conv_norm(x, self.downsample[0], self.downsample[1])
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2), inplace=True)
        return F.relu(conv_norm(out, self.conv3, self.bn3).add_(identity), inplace=True)


DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (_Basic, [2, 2, 2, 2]),
    "resnet34": (_Basic, [3, 4, 6, 3]),
    "resnet50": (_Bottleneck, [3, 4, 6, 3]),
    "resnet101": (_Bottleneck, [3, 4, 23, 3]),
}
STRIDES, DILATED = (4, 8, 16, 32), (4, 8, 16, 16)
"""Of layer1 .. layer4, without and with dilation."""


class ResNetBackbone(Backbone):
    """ResNet-18/34/50/101; its stages are the stem and layer1 .. layer4, its feature maps those of the layers."""

    def __init__(self, name: str, outputs: int | None = None, dilation: bool = False, frozen_norm: bool = True) -> None:
        """Build the stem and the first `outputs` layers (default: all four).

        dilation: stride 1 and dilation 2 in layer4 (DC5); frozen_norm: fixed BatchNorm, as DETR trains it.
        """
        block, depths = DEPTHS[name]
        if dilation and block is _Basic:
            raise ValueError(f"{name} cannot be dilated (its blocks have no dilation): use resnet50 or resnet101")
        strides = DILATED if dilation else STRIDES
        channels = [width * block.expansion for width in (64, 128, 256, 512)]
        super().__init__(channels[:outputs], strides[:outputs])
        norm = FrozenNorm if frozen_norm else nn.BatchNorm2d
        self.body = ResNet(block, depths, replace_stride_with_dilation=[False, False, dilation], norm_layer=norm)
        self.layers = [f"layer{index}" for index in range(1, len(self.channels) + 1)]
        for unused in ("avgpool", "fc", "layer1", "layer2", "layer3", "layer4"):
            if unused not in self.layers:
                delattr(self.body, unused)

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """stem, layer1, layer2, ..."""
        layers = [(name, [self.body.get_submodule(name)]) for name in self.layers]
        return [("stem", [self.body.conv1, self.body.bn1]), *layers]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the maps of strides 4, 8, 16 and 32 (16 when dilated)."""
        body = self.body
        x = body.maxpool(F.relu(conv_norm(images, body.conv1, body.bn1), inplace=True))
        maps = []
        for name in self.layers:
            x = body.get_submodule(name)(x)
            maps.append(x)
        return maps
