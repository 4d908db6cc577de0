"""COCO as DETR's published code shows it, and as "Container" shows it to RetinaNet and Mask R-CNN; images are RGB."""

from typing import Any

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator

from detr_container.d2.augmentations import detr_augmentations


def coco(augmentations: list[Any], filter_empty: bool, grouped: bool, masks: bool = False) -> dict[str, Any]:
    """The loaders of both splits and the evaluator.

    filter_empty: leave out images without objects; grouped: images of a batch are all wide, or all high.
    """
    return {
        "train": L(build_detection_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=filter_empty),
            mapper=L(DatasetMapper)(
                is_train=True, augmentations=augmentations, image_format="RGB", use_instance_mask=masks
            ),
            total_batch_size=16,
            num_workers=4,
            aspect_ratio_grouping=grouped,
        ),
        "test": L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
            mapper=L(DatasetMapper)(
                is_train=False,
                augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
                image_format="${...train.mapper.image_format}",
            ),
            num_workers=4,
        ),
        "evaluator": L(COCOEvaluator)(
            dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
        ),
    }


def detr_data() -> dict[str, Any]:
    """Flips, sizes and crops of DETR, images without objects included, in any order."""
    return coco([L(detr_augmentations)()], filter_empty=False, grouped=False)


def pyramid_data(masks: bool) -> dict[str, Any]:
    """Flipped, with a shorter side of 800 pixels; the images with objects."""
    flipped_and_resized = [
        L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333),
        L(T.RandomFlip)(horizontal=True),
    ]
    return coco(flipped_and_resized, filter_empty=True, grouped=True, masks=masks)
