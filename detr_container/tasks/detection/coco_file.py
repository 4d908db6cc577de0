"""Records of detectron2's standard format as a file in COCO's format, with what detection and masks need of them.

detectron2's own converter takes a fifth of a millisecond for an object, too long for each process of a job, rounds
boxes, and gives the first class the id 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, PolygonMasks
from pycocotools import mask

Record = Mapping[str, Any]
FORMAT = "https://detectron2.readthedocs.io/en/latest/tutorials/datasets.html"


def as_coco(records: Sequence[Record], classes: Mapping[int, str], source: str) -> tuple[Path | None, dict[str, Any]]:
    """The folder that all images lie in, and the content of the file, whose names of images are relative to it.

    classes: id and name of each class, in the order that category_id counts from 0; source: what errors begin with.
    Images keep their ids where these are whole numbers, and are numbered from 1 otherwise. Where they share no folder,
    it is None and their names are absolute. Raises ValueError, naming the image, for a record of another format.
    """
    given = [record.get("image_id") for record in records]
    ids = [int(each) for each in given if isinstance(each, int | np.integer)]
    if len(ids) < len(given):
        ids = list(range(1, len(given) + 1))
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for image_id, record in zip(ids, records, strict=True):
        try:
            images.append(_image(record) | {"id": image_id})
            found = _objects(record.get("annotations") or (), list(classes))
        # A person's own function made the record, and detectron2's structures, which read it, raise all of these.
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, NotImplementedError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{source}: the record of {record.get('file_name', f'image {image_id}')} is not in detectron2's "
                f"standard format ({reason}): correct the function that makes it, by {FORMAT}"
            ) from error
        first = len(objects) + 1
        objects += [{"id": number, "image_id": image_id, **each} for number, each in enumerate(found, first)]
    folder = _common([image["file_name"] for image in images])
    if folder is not None:
        for image in images:
            image["file_name"] = os.path.relpath(image["file_name"], folder)
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    return folder, {"images": images, "annotations": objects, "categories": categories}


def _image(record: Record) -> dict[str, Any]:
    path = os.path.abspath(os.fspath(record["file_name"]))
    return {"file_name": path, "height": int(record["height"]), "width": int(record["width"])}


def _common(paths: Sequence[str]) -> Path | None:
    """The folder that all of them lie in, unless that is the whole file system."""
    folders = {os.path.dirname(path) for path in paths}
    common = os.path.commonpath(folders) if folders else os.sep
    return None if common == os.sep else Path(common)


def _objects(annotations: Sequence[Record], ids: Sequence[int]) -> list[dict[str, Any]]:
    """The objects of an image. ids: of the classes, in the order that category_id counts."""
    found = []
    for each, box in zip(annotations, _boxes(annotations), strict=True):
        label = int(each["category_id"])
        if not 0 <= label < len(ids):
            raise ValueError(f"category_id {label} is of none of the {len(ids)} classes")
        area, outline = box[2] * box[3], each.get("segmentation")
        one = {"category_id": ids[label], "bbox": box, "area": area, "iscrowd": int(each.get("iscrowd", 0))}
        if outline is not None and len(outline):
            segmentation, area = _mask(outline)
            one |= {"segmentation": segmentation, "area": area}
        found.append(one)
    return found


def _boxes(annotations: Sequence[Record]) -> list[list[float]]:
    """Left, top, width and height of each."""
    boxes: list[list[float]] = [[]] * len(annotations)
    for mode in {each["bbox_mode"] for each in annotations}:
        rows = [row for row, each in enumerate(annotations) if each["bbox_mode"] == mode]
        given = np.array([annotations[row]["bbox"] for row in rows], dtype=np.float64)
        if given.shape != (len(rows), 4):
            raise ValueError("a bbox has not four numbers; turned boxes are not read")
        for row, box in zip(rows, BoxMode.convert(given, BoxMode(mode), BoxMode.XYWH_ABS).tolist(), strict=True):
            boxes[row] = box
    return boxes


def _mask(outline: Any) -> tuple[Any, float]:
    """A segmentation as JSON has it, and the pixels of its area as detectron2 computes it."""
    if isinstance(outline, Mapping):
        size, counts = [int(side) for side in outline["size"]], outline["counts"]
        code = mask.frPyObjects(outline, *size) if isinstance(counts, list) else outline
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        return {"size": size, "counts": counts}, float(mask.area(code))
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in outline]
    return [polygon.tolist() for polygon in polygons], PolygonMasks([polygons]).area()[0].item()
