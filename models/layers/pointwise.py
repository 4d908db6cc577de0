"""1 x 1 convolutions and convolutions of separate patches, on a GPU as products of matrices.

cuBLAS needs no plan for a new shape of map as cuDNN does, and adds the bias on its way. Maps keep their shape
[B, C, h, w]; on a GPU they lie with channels last, and what looks like a transposition here is a view.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .folded_convolution import fold_norm_before
from .frozen_norm import FrozenNorm
from .layer_norm import LayerNorm


class Pointwise(nn.Conv2d):
    """As `nn.Conv2d` with a 1 x 1 kernel; parameters and values are the same.

    devices: the types of device on which it is a product of matrices.
    """

    devices: tuple[str, ...] = ("cuda",)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h, w], of norm(x) if there is one: a frozen norm costs nothing."""
        weight, bias = self.weight, self.bias
        assert bias is not None
        if type(norm) is FrozenNorm:
            weight, bias = fold_norm_before(weight, bias, norm)
        elif norm is not None:
            x = norm(x)
        if x.device.type not in self.devices:
            return F.conv2d(x, weight, bias)
        rows = x.permute(0, 2, 3, 1)
        y = F.linear(rows.flatten(0, 2), weight.flatten(1), bias)
        return y.view(*rows.shape[:3], len(weight)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Non-overlapping patches of `stride` pixels, each to one vector, then LayerNorm over the channels.

    devices: the types of device on which the first is a product of matrices.
    """

    devices: tuple[str, ...] = ("cuda",)

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, stride, stride)
        self.norm = LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, channels, H / stride, W / stride]."""
        if x.device.type not in self.devices:
            return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.linear(self._patches(x), self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)
        return self.norm(y).permute(0, 3, 1, 2)

    def _patches(self, x: Tensor) -> Tensor:
        """[B, h, w, stride * stride * inputs], of whole patches."""
        side = self.proj.stride[0]
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        if (rows * side, columns * side) != x.shape[-2:]:
            x = x[..., : rows * side, : columns * side]
        # With channels last before anything else, so that their gradient comes to lie so, too.
        tiles = x.permute(0, 2, 3, 1).unflatten(2, (columns, side)).unflatten(1, (rows, side))
        return tiles.transpose(2, 3).flatten(3)
