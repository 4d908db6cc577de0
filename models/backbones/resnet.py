"""ResNet (He et al. 2016) from torchvision, with its norms folded into its convolutions when they are frozen."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..layers.folded_convolution import conv_norm
from ..layers.frozen_norm import FrozenNorm
from .backbone import Backbone


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

    def own_precision(self) -> list[nn.Module]:
        """Convolutions with a frozen norm: they are cast as they are scaled."""
        return [self.body] if isinstance(self.body.bn1, FrozenNorm) else []

    def checkpointed(self) -> list[nn.Module]:
        """Whole layers where norms are frozen: their blocks keep little beside their inputs."""
        if not isinstance(self.body.bn1, FrozenNorm):
            return super().checkpointed()
        return [module for _, modules in self.stages()[max(1, self.frozen_stages) :] for module in modules]

    def every_map(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the maps of strides 4, 8, 16 and 32 (16 when dilated)."""
        body = self.body
        x = body.maxpool(F.relu(conv_norm(images, body.conv1, body.bn1), inplace=True))
        maps = []
        for name in self.layers:
            x = body.get_submodule(name)(x)
            maps.append(x)
        return maps
