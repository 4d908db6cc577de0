"""Depthwise convolutions: each channel with a window of its own."""

from __future__ import annotations

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
