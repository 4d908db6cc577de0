"""Depthwise convolutions: each channel with a window of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gpu.depthwise import Geometry, depthwise


class Depthwise(nn.Conv2d):
    """As `nn.Conv2d` with as many groups as channels; parameters and values are the same.

    devices: the types of device on which it is computed by `gpu.depthwise`.
    """

    devices: tuple[str, ...] = ("cuda",)

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def own_precision(self) -> list[nn.Module]:
        """Itself where its kernels read weights of any type: casting them would only cost."""
        return [self] if self.weight.device.type in self.devices else []

    def forward(self, x: Tensor, residual: bool = False) -> Tensor:
        """[B, C, h, w] to [B, C, h', w'], plus x itself when `residual`."""
        if x.device.type in self.devices:
            geometry = Geometry(self.stride, tuple(map(int, self.padding)), self.dilation)
            return depthwise(x, self.weight, self.bias, geometry, residual)
        y = super().forward(x)
        return x + y if residual else y


class HeadDepthwise(nn.Module):
    """A depthwise convolution with one window and one bias for all channels of a head.

    Its M windows are repeated for the channels, so that it is computed, and costs, as `Depthwise`; their gradients are
    summed over a head's channels.
    """

    def __init__(self, channels: int, kernel: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide by {heads} heads")
        self.channels = channels
        # As the framework draws those of a depthwise convolution.
        bound = 1 / math.sqrt(kernel * kernel)
        self.weight = nn.Parameter(torch.empty(heads, 1, kernel, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        each = self.channels // len(self.weight)
        weight, bias = self.weight.repeat_interleave(each, dim=0), self.bias.repeat_interleave(each)
        padding = self.weight.shape[-1] // 2
        if x.device.type in Depthwise.devices:
            return depthwise(x, weight, bias, Geometry((1, 1), (padding, padding), (1, 1)))
        return F.conv2d(x, weight, bias, padding=padding, groups=self.channels)


def use_depthwise(model: nn.Module) -> nn.Module:
    """Make every depthwise `nn.Conv2d` in `model` a `Depthwise` of the same geometry, in place. Returns `model`."""
    for module in model.modules():
        # Of subclasses nobody knows what else they do.
        if (
            type(module) is nn.Conv2d
            and 1 < module.groups == module.in_channels == module.out_channels
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module.__class__ = Depthwise
    return model
