"""DETR's augmentation, made of detectron2's transforms.

Drawn as in `datasets/transforms.py`, but each transform rounds sizes as detectron2 does, so that an image may be a
pixel larger or smaller than in our own training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
from detectron2.config import CfgNode

from detr_container.config.detection import COCO_SCALES, DataConfig
from detr_container.datasets.transforms import LARGEST_ASPECT

_USUAL = DataConfig()


def detr_augmentations(
    scales: Sequence[int] = COCO_SCALES,
    max_size: int = _USUAL.max_size,
    crop_resize: Sequence[int] = _USUAL.crop_resize,
    crop_range: Sequence[int] = _USUAL.crop_range,
    crop: bool = True,
) -> Any:
    """Flip half the images, resize and crop half of them, and scale the shorter side to one of `scales`.

    All lengths are in pixels; see `Augmentation`. crop: False leaves the crops out.
    """
    steps: list[Any] = [T.RandomFlip(horizontal=True)]
    if crop:
        # Without a limit, a strip of an image would become a gigabyte.
        before = T.ResizeShortestEdge(tuple(crop_resize), LARGEST_ASPECT * min(crop_resize), "choice")
        cropping = T.AugmentationList([before, T.RandomCrop("absolute_range", tuple(crop_range))])
        steps.append(T.RandomApply(cropping, prob=0.5))
    steps.append(T.ResizeShortestEdge(tuple(scales), max_size, "choice"))
    return T.AugmentationList(steps)


def from_settings(cfg: CfgNode) -> Any:
    """The same from yacs settings. Raises ValueError for what DETR's augmentation does not have."""
    given = cfg.INPUT
    if given.RANDOM_FLIP != "horizontal" or given.MIN_SIZE_TRAIN_SAMPLING != "choice":
        raise ValueError(
            f"INPUT.RANDOM_FLIP={given.RANDOM_FLIP}, INPUT.MIN_SIZE_TRAIN_SAMPLING={given.MIN_SIZE_TRAIN_SAMPLING}: "
            "DETR's augmentation flips horizontally and draws one of the sizes; set horizontal and choice"
        )
    if given.CROP.ENABLED and given.CROP.TYPE != "absolute_range":
        raise ValueError(
            f"INPUT.CROP.TYPE={given.CROP.TYPE}: DETR's crops are between two lengths in pixels; set absolute_range, "
            "and INPUT.CROP.SIZE to these, or INPUT.CROP.ENABLED to False"
        )
    return detr_augmentations(
        given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN, crop_range=given.CROP.SIZE, crop=given.CROP.ENABLED
    )
