"""RetinaNet and Mask R-CNN on any backbone of ours, as nodes of detectron2's LazyConfig.

The nodes are detectron2's own configurations of both models, with our backbone and its feature pyramid in the place of
theirs: what trains them in our engine and in detectron2's loop is one description.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec

from detr_container.config.detection import PyramidConfig
from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

from .backbones import level_of, pyramid

FINEST = {"retinanet": 8, "mask_rcnn": 4}
"""The finest stride that each model reads."""
ANCHOR = 32
"""Side in pixels of the anchors on the finest level, as published."""
_THIRDS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def retinanet(
    bottom_up: Any,
    classes: int,
    strides: Sequence[int] = (8, 16, 32),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    settings: PyramidConfig | None = None,
) -> Any:
    """RetinaNet (Lin et al. 2017). bottom_up: the node of a `D2Backbone`, whose maps have these strides.

    mean, std: the backbone's input normalisation, RGB, of pixels in [0, 1].
    """
    of = settings or PyramidConfig()
    model = _theirs("retinanet")
    # Two levels more, each of twice the stride.
    levels = [*strides, 2 * strides[-1], 4 * strides[-1]]
    model.backbone = L(pyramid)(bottom_up=bottom_up, channels=of.channels, top="p6p7")
    model.head.input_shape = [ShapeSpec(channels=of.channels)] * len(levels)
    model.head.conv_dims = [of.channels] * of.convolutions
    finest = of.anchor_size or ANCHOR
    model.anchor_generator.sizes = [[(finest << place) * third for third in _THIRDS] for place in range(len(levels))]
    model.anchor_generator.strides = levels
    model.head_in_features = _names(levels)
    model.num_classes = classes
    model.test_score_thresh, model.test_nms_thresh = of.score_threshold, of.nms
    model.max_detections_per_image = of.detections
    return _normalised(model, mean, std)


def mask_rcnn(
    bottom_up: Any,
    classes: int,
    strides: Sequence[int] = (4, 8, 16, 32),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    settings: PyramidConfig | None = None,
) -> Any:
    """Mask R-CNN (He et al. 2017); see `retinanet`."""
    of = settings or PyramidConfig()
    model = _theirs("mask_rcnn_fpn")
    # One level more, which proposals alone are made of.
    levels = [*strides, 2 * strides[-1]]
    model.backbone = L(pyramid)(bottom_up=bottom_up, channels=of.channels, top="maxpool")
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.in_features = _names(levels)
    rpn.head.in_channels = of.channels
    finest = of.anchor_size or ANCHOR
    rpn.anchor_generator.sizes = [[finest << place] for place in range(len(levels))]
    rpn.anchor_generator.strides = levels
    rpn.post_nms_topk = (of.proposals, of.proposals)
    heads.num_classes, heads.batch_size_per_image = classes, of.samples
    heads.box_in_features = heads.mask_in_features = _names(strides)
    for pooler in (heads.box_pooler, heads.mask_pooler):
        pooler.scales = tuple(1 / stride for stride in strides)
    heads.box_head.input_shape = ShapeSpec(channels=of.channels, height=7, width=7)
    heads.box_head.fc_dims = [of.hidden, of.hidden]
    heads.box_predictor.input_shape = ShapeSpec(channels=of.hidden)
    heads.box_predictor.test_score_thresh, heads.box_predictor.test_nms_thresh = of.score_threshold, of.nms
    heads.box_predictor.test_topk_per_image = of.detections
    heads.mask_head.input_shape = ShapeSpec(channels=of.channels, height=14, width=14)
    # The last of them is the transposed convolution.
    heads.mask_head.conv_dims = [of.channels] * (of.convolutions + 1)
    return _normalised(model, mean, std)


NODES = {"retinanet": retinanet, "mask_rcnn": mask_rcnn}
"""By `HeadConfig.kind`."""


def _theirs(name: str) -> Any:
    """detectron2's own configuration of a model, which is installed with it."""
    # Not by its `model_zoo`, whose import needs a part of setuptools that is gone from current ones.
    folder = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "common" / "models"
    return LazyConfig.load(str(folder / f"{name}.py")).model


def _names(strides: Sequence[int]) -> list[str]:
    return [f"p{level_of(stride)}" for stride in strides]


def _normalised(model: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The same with our input: RGB, normalised as the backbone wants it."""
    model.input_format = "RGB"
    model.pixel_mean, model.pixel_std = ([255 * value for value in values] for values in (mean, std))
    return model
