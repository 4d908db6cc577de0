"""Where an experiment's images and annotations lie: a folder in COCO's layout, files, or detectron2's catalog."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Literal

from detr_container.base.optional import require_detectron2
from detr_container.config.detection import DataConfig, one_source
from detr_container.datasets.annotations import resolve_split

Place = tuple[Path, Path]
"""The folder of images and the annotation file of a split."""


def both_splits(data: DataConfig) -> tuple[Place, Place]:
    """Training's and validation's. Raises as `one_split`."""
    return one_split("train", data), one_split("val", data)


def one_split(split: Literal["train", "val"], data: DataConfig) -> Place:
    """A split's (image folder, annotation file).

    Raises ValueError where no data set is named, or two, or detectron2 has none of that name; FileNotFoundError where
    one is not there.
    """
    one_source(data)
    if data.d2_dataset:
        found: Place = _catalog().find(data.d2_dataset, split, data.d2_import)
        return found
    if split == "train":
        return resolve_split(split, data.root, data.train_images, data.train_annotations)
    return resolve_split(split, data.root, data.val_images, data.val_annotations)


def folders(data: DataConfig) -> list[Path]:
    """The folders that the data are known to lie in; none where that cannot be found out."""
    if data.root is not None:
        return [data.root]
    if not data.d2_dataset:
        return []
    try:
        found: list[Path] = _catalog().folders(data.d2_dataset, data.d2_import)
    except (ValueError, OSError):
        # Whoever looks for the data themselves says what is wrong.
        return []
    return found


def _catalog() -> ModuleType:
    """What knows detectron2's catalog. Raises ValueError where detectron2 is missing."""
    require_detectron2()
    from .anchors.workarounds import deprecated_functions_of_torch_are_called

    with deprecated_functions_of_torch_are_called():
        from . import catalog
    return catalog
