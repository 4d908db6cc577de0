"""COCO's average precision of boxes: from detections and an annotation file to figures.

Two evaluators compute the same figures: faster-coco-eval (the default) and pycocotools (the reference). Both are given
the same plain copy of the ground truth and of the detections, and both leave precision and recall arrays, which are
averaged here, once.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from detr_container.base.checked import Schema, mistakes, read_plain
from detr_container.base.files import atomic_write
from detr_container.datasets.annotations import Annotations, read_annotations

from .scores import FIGURES, ClassScore, Scores

Evaluator = Literal["faster", "pycocotools"]
_RULE = "each has image_id and category_id (whole numbers), bbox [x, y, width, height] in pixels and score"


_LARGEST = 1 << 33
"""Bytes of a file of detections: ten times what the largest public data sets make."""


class DetectionRow(Schema):
    """One detection of a file."""

    image_id: int
    category_id: int
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    score: float


class Record(TypedDict):
    """One detection in COCO's result format: bbox is x, y, width, height in pixels of the picture on disk."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


@dataclass(frozen=True)
class Detections:
    """What was found in one picture.

    boxes: [n, 4] (x1, y1, x2, y2 in pixels of the picture on disk); labels: [n] contiguous from 0; scores: [n].
    """

    image_id: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def records(self, category_ids: Sequence[int]) -> list[Record]:
        """Make COCO's result records; `category_ids[label]` is the class's id in the annotation file."""
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows = zip(self.labels.tolist(), boxes.tolist(), self.scores.tolist(), strict=True)
        return [
            Record(image_id=self.image_id, category_id=category_ids[label], bbox=box, score=score)
            for label, box, score in rows
        ]


class Columns(NamedTuple):
    """Detections as arrays: images [n] and categories [n] by id, boxes [n, 4] x, y, width, height, scores [n]."""

    images: NDArray[Any]
    categories: NDArray[Any]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What an annotation file says of some of its pictures, for either evaluator; known: the ids of all of them."""

    image_ids: list[int]
    names: dict[int, str]
    annotations: list[dict[str, Any]]
    known: frozenset[int] = frozenset()


def score(
    annotations: str | Path | Annotations,
    results: Sequence[Record] | str | Path,
    evaluator: Evaluator = "faster",
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Compute COCO's box AP of `results` (records, or a file of them) against an annotation file, read or not.

    image_ids: score only these pictures; detections on others of the file are then left out. Default: all.
    Neither the file nor the records are altered. No detections give zeros. Of one picture's detections the 100 best
    of each class count, as in COCO. Detections of a class that the file lacks are left out with a warning.
    Raises ValueError for detections on pictures that the file lacks, and for damaged files or records.
    """
    if evaluator not in ("faster", "pycocotools"):
        raise ValueError(f"evaluator {evaluator!r}: it is 'faster' or 'pycocotools'")
    if isinstance(annotations, Annotations):
        path, truth = annotations.path, truth_of(annotations, image_ids)
    else:
        path, truth = Path(annotations), read_truth(Path(annotations), image_ids)
    found = read_results(results) if isinstance(results, str | Path) else results
    detections = _plain_detections(found, truth, path)
    precision, recall = _evaluate(truth, detections, evaluator)
    return _summarise(truth, precision, recall)


def read_results(path: str | Path) -> list[Record]:
    """Read a file in COCO's result format. Raises ValueError when it is not one."""
    content = read_plain(Path(path), _LARGEST)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}: COCO's result format is a list; {_RULE}")
    return content


def write_results(path: str | Path, results: Sequence[Record]) -> None:
    """Write records in COCO's result format, one a line, whole or not at all.

    Raises ValueError for what is not finite, which JSON cannot hold.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    text = "[\n" + ",\n".join(map(encode, results)) + "\n]\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_truth(path: Path, image_ids: Sequence[int] | None = None) -> Truth:
    """Read an annotation file in COCO's format, or what it says of some of its pictures.

    It is read by the rules of training, but for names and sizes of images, which scoring does not need.
    Raises ValueError when it is not one, and for pictures that it lacks.
    """
    return truth_of(read_annotations(path, path.parent, names_and_sizes=False), image_ids)


def truth_of(annotations: Annotations, image_ids: Sequence[int] | None = None) -> Truth:
    """What has been read of an annotation file, or of some of its pictures. Raises as `read_truth`."""
    known = frozenset(annotations.image_ids.tolist())
    chosen = known if image_ids is None else frozenset(int(image_id) for image_id in image_ids)
    if strangers := sorted(chosen - known):
        raise ValueError(f"image_ids: {_some(strangers)} not in {annotations.path}: pass ids of its images")
    if not chosen:
        raise ValueError(f"no pictures to score: {annotations.path} lists {len(known)}, image_ids chooses none of them")
    category_ids = np.array([category.id for category in annotations.categories], dtype=np.int64)
    images = np.repeat(annotations.image_ids, np.diff(annotations.starts))
    columns = (images, category_ids[annotations.labels], annotations.boxes, annotations.areas, annotations.crowd)
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    kept = np.isin(images, sorted(chosen))
    rows = zip(*(column[kept].tolist() for column in columns), strict=True)
    # Both evaluators mark "not matched" with id 0 and look objects up by id, so ids must be 1, 2, ...
    objects = [{"id": index, **dict(zip(keys, row, strict=True))} for index, row in enumerate(rows, start=1)]
    for record in objects:
        record["iscrowd"] = int(record["iscrowd"])
    names = {category.id: category.name for category in annotations.categories}
    return Truth(sorted(chosen), names, objects, known)


def _plain_detections(results: Sequence[Record], truth: Truth, path: Path) -> list[dict[str, Any]]:
    """Check and copy the records, adding what the evaluators need beside them."""
    found = detection_columns(results, truth, path)
    rows = zip(
        found.images.tolist(),
        found.categories.tolist(),
        found.boxes.tolist(),
        (found.boxes[:, 2] * found.boxes[:, 3]).tolist(),
        found.scores.tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "score")
    return [{"id": index, "iscrowd": 0, **dict(zip(keys, row, strict=True))} for index, row in enumerate(rows, start=1)]


def detection_columns(results: Sequence[Record], truth: Truth, path: Path) -> Columns:
    """Records as arrays, without those of classes that the ground truth lacks, of which a warning tells.

    path: the annotation file, for messages. Detections on pictures that `truth` leaves out are left out, too.
    Raises ValueError for records that are not in the format, and for pictures that the file lacks.
    """
    if not results:
        nothing = np.zeros(0, dtype=np.int64)
        return Columns(nothing, nothing, np.zeros((0, 4)), np.zeros(0))
    images, categories, boxes, confidences = _columns(results)
    kept = np.isin(images, truth.image_ids)
    if not kept.all() and (strangers := sorted(set(images[~kept].tolist()) - truth.known.union(truth.image_ids))):
        raise ValueError(
            f"detections on pictures that {path} lacks: image_id {_some(strangers)}. "
            "Score them against the annotation file of their own data set"
        )
    classed = np.isin(categories, list(truth.names))
    if not classed.all():
        others = _some(sorted(set(categories[~classed].tolist())))
        warnings.warn(
            f"{int((~classed).sum())} detections of classes that {path} lacks (category_id {others}) are left out",
            stacklevel=4,
        )
    kept &= classed
    return Columns(images[kept], categories[kept], boxes[kept], confidences[kept])


def _columns(results: Sequence[Record]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """image_id [n], category_id [n], bbox [n, 4] and score [n]; ValueError names the first record that is wrong."""
    try:
        images = np.asarray([record["image_id"] for record in results])
        categories = np.asarray([record["category_id"] for record in results])
        boxes = np.asarray([record["bbox"] for record in results])
        confidences = np.asarray([record["score"] for record in results])
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(_not_in_format(results)) from error
    kinds = (images.dtype.kind, categories.dtype.kind, boxes.dtype.kind, confidences.dtype.kind)
    shapes = (images.shape, categories.shape, confidences.shape, boxes.shape)
    # As they came: asked for numbers, numpy would make some of texts.
    fits = all(kind in allowed for kind, allowed in zip(kinds, ("iu", "iu", "iuf", "iuf"), strict=True))
    if not fits or shapes != (*[(len(results),)] * 3, (len(results), 4)):
        raise ValueError(_not_in_format(results))
    boxes, confidences = boxes.astype(np.float64), confidences.astype(np.float64)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1) | ~np.isfinite(confidences)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{int(wrong.sum())} detections are not finite or have a negative size, first {results[index]} at {index}. "
            "A model that gives such boxes has diverged; in a file, check that bbox is [x, y, width, height]"
        )
    return images, categories, boxes, confidences


def _not_in_format(results: Sequence[Any]) -> str:
    """What is wrong with the first record that is."""
    for index, record in enumerate(results):
        if wrong := mistakes(record, DetectionRow):
            return f"detections are not in COCO's result format: record {index}: {wrong}; {_RULE}"
    return f"detections are not in COCO's result format: {_RULE}"


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _evaluate(
    truth: Truth, detections: list[dict[str, Any]], evaluator: Evaluator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run one evaluator.

    Returns precision [10 IoUs, 101 recalls, classes, 4 areas, 3 limits] and recall [10, classes, 4, 3]; -1: no objects.
    """
    if evaluator == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truth.annotations, detections):
            # Filled by hand: loadRes would copy the ground truth, make polygons of boxes, and fail on no detections.
            table = COCO()
            table.dataset = {
                "images": [{"id": image_id} for image_id in truth.image_ids],
                "categories": [{"id": category_id, "name": name} for category_id, name in truth.names.items()],
                "annotations": annotations,
            }
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _mean(values: NDArray[np.float64]) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _summarise(truth: Truth, precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Scores:
    """Take the means that COCO reports. Areas: all, small, medium, large; limits: 1, 10, 100 detections a picture."""
    objects = dict.fromkeys(truth.names, 0)
    for annotation in truth.annotations:
        objects[annotation["category_id"]] += not annotation["iscrowd"]
    best = precision[..., -1]
    per_class = tuple(
        ClassScore(category_id, name, _mean(best[:, :, index, 0]), _mean(best[0, :, index, 0]), objects[category_id])
        for index, (category_id, name) in enumerate(truth.names.items())
    )
    figures = (
        best[..., 0],
        best[0, ..., 0],
        best[5, ..., 0],
        *(best[..., area] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, 2] for area in (1, 2, 3)),
    )
    named = dict(zip(FIGURES, map(_mean, figures), strict=True))
    return Scores(**named, per_class=per_class, images=len(truth.image_ids))
