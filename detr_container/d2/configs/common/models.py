"""The models of the configurations, for COCO's classes; the backbones start from published weights."""

from typing import Any

from detectron2.config import LazyCall as L

from detr_container.config.backbones import BackboneConfig
from detr_container.config.detection import HeadConfig, LossConfig
from detr_container.d2.meta_archs import DETR, SMCADETR
from detr_container.tasks.detection.anchors import backbones, heads

_FROZEN = {"weights": "imagenet", "norm": "frozen", "drop_path": 0.0}
_BACKBONES = {
    "r50": {"name": "resnet50", "frozen_stages": 2, **_FROZEN},
    "container_light": {"name": "container_light", "frozen_stages": 0, **_FROZEN},
}


def detr(backbone: str) -> Any:
    """DETR on a backbone."""
    return L(DETR)(
        backbone=L(BackboneConfig)(**_BACKBONES[backbone]),
        head=L(HeadConfig)(queries=100),
        loss=L(LossConfig)(),
        num_classes=80,
        input_format="RGB",
        longest_side=1333,
    )


def smca(backbone: str) -> Any:
    """SMCA-DETR on a backbone."""
    return L(SMCADETR)(
        backbone=L(BackboneConfig)(**_BACKBONES[backbone]),
        head=L(HeadConfig)(queries=300),
        loss=L(LossConfig)(classification="focal", class_weight=2.0, cost_class=2.0),
        num_classes=80,
        input_format="RGB",
        longest_side=1333,
    )


def retinanet(backbone: str) -> Any:
    """detectron2's RetinaNet on a backbone."""
    return heads.retinanet(L(backbones.backbone)(**_BACKBONES[backbone], finest=8, longest=1333), 80)


def mask_rcnn(backbone: str) -> Any:
    """detectron2's Mask R-CNN on a backbone."""
    return heads.mask_rcnn(L(backbones.backbone)(**_BACKBONES[backbone], finest=4, longest=1333), 80)
