"""Every backbone of ours as detectron2 takes it: named feature maps, and a feature pyramid (FPN) on them."""

from __future__ import annotations

from typing import Any, Literal

from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling import Backbone as Detectron2Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from detr_container.config.backbones import BackboneConfig
from detr_container.engine.backbones import build_backbone
from detr_container.models.backbones.backbone import Backbone

from .map_norm import MapNorm


def level_of(stride: int) -> int:
    """The number of a level in detectron2's names: its stride is 2 to this power."""
    return stride.bit_length() - 1


def pyramid_strides(backbone: Backbone, finest: int) -> tuple[int, ...]:
    """The strides of a backbone's maps that a feature pyramid is built on, from `finest` on.

    Raises ValueError where they do not double from each to the next, as an FPN needs it.
    """
    strides = [stride for stride in backbone.strides if stride >= finest]
    doubled = [finest << place for place in range(len(strides))]
    if not strides or strides != doubled:
        listed = ", ".join(map(str, backbone.strides))
        raise ValueError(
            f"a feature pyramid needs maps of the strides {finest}, {2 * finest}, {4 * finest}, ..., and this backbone "
            f"has {listed}: use one of several stages, such as container_light or a ResNet without dilation"
        )
    return tuple(strides)


class D2Backbone(Detectron2Backbone):
    """A backbone of ours. Its outputs are called s2, s3, ... after their levels: s5 has stride 32.

    network: the backbone, whose maps are all given; map_norm: see `PyramidConfig`; input_format: the order of channels
    in which detectron2 gives it images, RGB or BGR, and it takes them as RGB.
    """

    def __init__(self, network: Backbone, map_norm: str = "none", input_format: str = "RGB") -> None:
        super().__init__()
        self.network, self.input_format = network, input_format
        shapes = zip(network.channels, network.strides, strict=True)
        self._shapes = {f"s{level_of(stride)}": ShapeSpec(channels=c, stride=stride) for c, stride in shapes}
        if len(self._shapes) < len(network.strides):
            raise ValueError(
                f"feature maps of the strides {', '.join(map(str, network.strides))}: the stride names them, so each "
                "must have another one (backbone.dilation=False)"
            )
        norms = {name: MapNorm(shape.channels) for name, shape in self._shapes.items()}
        self.norms = nn.ModuleDict(norms if map_norm == "layer" else {})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] normalised images to one [B, C, H / stride, W / stride] map per name."""
        x = x.flip(1) if self.input_format == "BGR" else x
        maps = dict(zip(self._shapes, self.network(x), strict=True))
        return {name: self.norms[name](each) if name in self.norms else each for name, each in maps.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """What the sides of images must be multiples of."""
        return self.network.size_multiple


def backbone(
    name: str,
    weights: str = "imagenet",
    map_norm: str = "none",
    finest: int = 4,
    longest: int = 1333,
    **settings: Any,
) -> D2Backbone:
    """A backbone of ours for a feature pyramid, from `BackboneConfig`'s settings.

    finest: the finest stride that is read; longest: side of images in pixels, for networks that take one size only.
    """
    network = build_backbone(BackboneConfig(name=name, weights=weights, **settings), canvas=longest)
    return D2Backbone(network.at_strides(*pyramid_strides(network, finest)), map_norm)


def pyramid(bottom_up: D2Backbone, channels: int, top: Literal["p6p7", "maxpool"]) -> FPN:
    """A feature pyramid on all maps of a backbone, with what is on top of it: of RetinaNet, or of Mask R-CNN."""
    shapes = bottom_up.output_shape()
    deepest = list(shapes)[-1]
    if top == "p6p7":
        block: Any = LastLevelP6P7(shapes[deepest].channels, channels, deepest)
    else:
        block = LastLevelMaxPool()
        block.in_feature = f"p{level_of(shapes[deepest].stride)}"
    return FPN(bottom_up, list(shapes), channels, top_block=block)
