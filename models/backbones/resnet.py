"""ResNet (He et al. 2016) from torchvision, with its norms folded into its convolutions when they are frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..layers.folded_convolution import conv_norm
from ..layers.frozen_norm import FrozenNorm
from .backbone import IMAGENET_STD, Backbone


class _Basic(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else conv_norm(self.seen(x), self.downsample[0], self.downsample[1])
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        return F.relu(conv_norm(out, self.conv2, self.bn2).add_(identity), inplace=True)

    def seen(self, x: Tensor) -> Tensor:
        """What the shortcut's convolution reads."""
        return x


class _NarrowBasic(_Basic):
    """The shortcut takes each stride-th pixel first, then has no stride: see `layers.cpu.safe_convolution`."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm_layer: Callable[[int], nn.Module]) -> None:
        changes = stride > 1 or inputs != outputs
        down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm_layer(outputs)) if changes else None
        super().__init__(inputs, outputs, stride, down, norm_layer=norm_layer)

    def seen(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride]


class _Bottleneck(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else conv_norm(x, self.downsample[0], self.downsample[1])
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2), inplace=True)
        return F.relu(conv_norm(out, self.conv3, self.bn3).add_(identity), inplace=True)


class _MsraBottleneck(_Bottleneck):
    """The stride is the first 1 x 1 convolution's, not the 3 x 3's."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (_Basic, [2, 2, 2, 2]),
    "resnet34": (_Basic, [3, 4, 6, 3]),
    "resnet50": (_Bottleneck, [3, 4, 6, 3]),
    "resnet101": (_Bottleneck, [3, 4, 23, 3]),
}
MSRA: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet50_msra": (_MsraBottleneck, [3, 4, 6, 3]),
    "resnet101_msra": (_MsraBottleneck, [3, 4, 23, 3]),
}
"""As first published (He et al. 2016), and as detectron2 has them: torchvision's move the strides, and scale pixels."""
TWINS = {each.removesuffix("_msra"): each for each in MSRA} | {each: each.removesuffix("_msra") for each in MSRA}
"""Of each kind the ResNet of the other whose tensors have the same names and sizes, and which is another network."""
MSRA_STD = (1 / 255, 1 / 255, 1 / 255)
"""Of MSRA's networks: they take pixels of 0 .. 255 less their mean, which is ImageNet's."""
NARROW: dict[str, tuple[int, list[int]]] = {"resnet18_tiny": (9, [2, 2, 2]), "resnet18_small": (27, [2, 2, 2])}
"""Ours, for comparison: ResNet-18 up to layer3, as wide (channels of layer1; depths) as gives it the parameters of
container_light_tiny and container_light_small."""
STRIDES, DILATED = (4, 8, 16, 32), (4, 8, 16, 16)
"""Of layer1 .. layer4, without and with dilation."""


class _Narrow(nn.Module):
    """A ResNet of basic blocks as torchvision builds and draws it, with other channels and without classifier."""

    def __init__(self, width: int, depths: Sequence[int], norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), norm_layer(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for layer, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                blocks.append(_NarrowBasic(inputs, width << layer, 1 if place or not layer else 2, norm_layer))
                inputs = width << layer
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def strides_of(name: str, dilation: bool = False) -> tuple[int, ...]:
    """Of all feature maps of one of these networks, finest first."""
    return (DILATED if dilation else STRIDES)[: len(NARROW[name][1]) if name in NARROW else None]


class ResNetBackbone(Backbone):
    """ResNet-18/34/50/101; its stages are the stem and layer1 .. layer4, its feature maps those of the layers.

    The narrow ones end with layer3. msra: whether it is one of `MSRA`, whose weights are of other images.
    """

    def __init__(self, name: str, outputs: int | None = None, dilation: bool = False, frozen_norm: bool = True) -> None:
        """Build the stem and the first `outputs` layers (default: all four).

        dilation: stride 1 and dilation 2 in layer4 (DC5); frozen_norm: fixed BatchNorm, as DETR trains it.
        """
        block, depths = (_Basic, NARROW[name][1]) if name in NARROW else (DEPTHS | MSRA)[name]
        width = NARROW[name][0] if name in NARROW else 64
        if dilation and block is _Basic:
            raise ValueError(f"{name} cannot be dilated (its blocks have no dilation): use resnet50 or resnet101")
        channels = [block.expansion * width << layer for layer in range(len(depths))]
        super().__init__(
            channels[:outputs],
            strides_of(name, dilation)[:outputs],
            std=MSRA_STD if name in MSRA else IMAGENET_STD,
        )
        self.msra = name in MSRA
        norm = FrozenNorm if frozen_norm else nn.BatchNorm2d
        if name in NARROW:
            self.body: Any = _Narrow(width, depths, norm)
        else:
            self.body = ResNet(block, depths, replace_stride_with_dilation=[False, False, dilation], norm_layer=norm)
        self.layers = [f"layer{index}" for index in range(1, len(self.channels) + 1)]
        for unused in ("avgpool", "fc", "layer1", "layer2", "layer3", "layer4"):
            if unused not in self.layers and hasattr(self.body, unused):
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
