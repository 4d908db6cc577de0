"""Our backbones in detectron2's registry, by their settings in `MODEL.DETR_CONTAINER.BACKBONE`; see `settings.py`.

`MODEL.BACKBONE.NAME` is one of these functions: without a feature pyramid, with one for RetinaNet, or for Mask R-CNN.
"""

from __future__ import annotations

from typing import Literal

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN

from detr_container.engine.backbones import build_backbone
from detr_container.tasks.detection.anchors.backbones import D2Backbone, backbone, pyramid, pyramid_strides

from .settings import backbone_config, check_input

__all__ = ["D2Backbone", "backbone", "pyramid"]


@BACKBONE_REGISTRY.register()
def build_detr_container_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> D2Backbone:
    """All feature maps of a backbone, called s2, s3, ... after their levels: s5 has stride 32."""
    del input_shape
    return _bottom_up(cfg, 0)


@BACKBONE_REGISTRY.register()
def build_detr_container_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """A feature pyramid from stride 8 on and two levels above: p3 to p7 of a backbone up to stride 32."""
    del input_shape
    return _pyramid(cfg, 8, "p6p7")


@BACKBONE_REGISTRY.register()
def build_detr_container_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """A feature pyramid from stride 4 on and one level above: p2 to p6 of a backbone up to stride 32."""
    del input_shape
    return _pyramid(cfg, 4, "maxpool")


def _pyramid(cfg: CfgNode, finest: int, top: Literal["p6p7", "maxpool"]) -> FPN:
    if cfg.MODEL.FPN.NORM or cfg.MODEL.FPN.FUSE_TYPE != "sum":
        raise ValueError(
            f"MODEL.FPN.NORM={cfg.MODEL.FPN.NORM!r}, MODEL.FPN.FUSE_TYPE={cfg.MODEL.FPN.FUSE_TYPE!r}: the pyramids "
            "here have no norms and add their levels up; leave both as they are"
        )
    return pyramid(_bottom_up(cfg, finest), cfg.MODEL.FPN.OUT_CHANNELS, top)


def _bottom_up(cfg: CfgNode, finest: int) -> D2Backbone:
    """finest: the finest stride that a pyramid reads; 0: there is none, and all maps are given.

    Raises ValueError where images come otherwise than the backbone wants them.
    """
    network = build_backbone(backbone_config(cfg), canvas=max(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST))
    check_input(cfg.INPUT.FORMAT, network.mean, network.std, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    if finest:
        network.at_strides(*pyramid_strides(network, finest))
    return D2Backbone(network, cfg.MODEL.DETR_CONTAINER.MAP_NORM, cfg.INPUT.FORMAT)
