"""Our data sets in detectron2's catalog."""

from __future__ import annotations

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from detr_container.datasets.annotations import read_categories, resolve
from detr_container.datasets.shapes import make_shapes


def register(
    root: Path | None,
    name: str,
    train_images: Path | None = None,
    train_annotations: Path | None = None,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
) -> tuple[str, str]:
    """Register a data set in COCO's layout as NAME_train and NAME_val, and return these names.

    root: a folder that holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; a path that is given
    wins over it. Classes are numbered from 0 in the order of their ids. Registering the same again changes nothing.
    Raises ValueError where a name is taken by another data set, FileNotFoundError where files are missing.
    """
    pairs = resolve(root, train_images, train_annotations, val_images, val_annotations)
    train, val = (_register(f"{name}_{split}", *pair) for split, pair in zip(("train", "val"), pairs, strict=True))
    return train, val


def register_shapes(
    root: Path, train: int = 2000, val: int = 200, size: int = 128, name: str = "shapes"
) -> tuple[str, str]:
    """Register the data set of coloured shapes, made in `root` where nothing is there. Raises as both do.

    train, val: numbers of images; size: their sides in pixels.
    """
    make_shapes(root, train, val, size)
    return register(root, name)


def _register(name: str, images: Path, annotations: Path) -> str:
    files = {"json_file": str(annotations.absolute()), "image_root": str(images.absolute())}
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if {key: known.get(key) for key in files} == files:
            return name
        raise ValueError(
            f"{name} is registered in detectron2's catalog already, as another data set "
            f"({known.get('json_file') or 'made by a function'}, not {annotations}): choose another name"
        )
    categories = read_categories(annotations)
    classes = {
        "thing_classes": [category.name for category in categories],
        "thing_dataset_id_to_contiguous_id": {category.id: place for place, category in enumerate(categories)},
    }
    register_coco_instances(name, classes, **files)
    return name
