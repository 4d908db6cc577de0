"""COCO's average precision of boxes: from detections and an annotation file to metrics.

Two evaluators compute the same metrics: faster-coco-eval (the default) and pycocotools (the reference). Both are given
the same plain copy of the ground truth and of the detections, and both leave precision and recall arrays, which are
averaged here, once.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detr_container.datasets.annotations import Annotations, read_annotations

from .coco_results import ResultRecord, columns_of, read_results
from .detections import Columns, Detections
from .scores import METRICS, ClassScore, Scores

Evaluator = Literal["faster", "pycocotools"]


@dataclass(frozen=True)
class Truth:
    """What an annotation file says of some of its images, for either evaluator.

    image_ids: rising; names: of all classes by id, rising; of each object images: [A] and categories: [A] by id, boxes:
    [A, 4] x, y, width, height in pixels, areas: [A], crowd: [A]; known: the ids of all images of the file.
    """

    image_ids: NDArray[np.int64]
    names: dict[int, str]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    known: NDArray[np.int64]


def score(
    annotations: str | Path | Annotations,
    results: Detections | Sequence[ResultRecord] | str | Path,
    evaluator: Evaluator = "faster",
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Compute COCO's box AP of `results` (arrays, records, or a file of those) against an annotation file, read or not.

    image_ids: score only these images; detections on others of the file are then left out. Default: all.
    Neither the file nor the records are altered. No detections give zeros. Of one image's detections the 100 best
    of each class count, as in COCO. Detections of a class that the file lacks are left out with a warning.
    Raises ValueError for detections on images that the file lacks, and for damaged files or records.
    """
    if evaluator not in ("faster", "pycocotools"):
        raise ValueError(f"evaluator {evaluator!r}: it is 'faster' or 'pycocotools'")
    if isinstance(annotations, Annotations):
        path, truth = annotations.path, truth_of(annotations, image_ids)
    else:
        path, truth = Path(annotations), read_truth(Path(annotations), image_ids)
    if isinstance(results, Detections):
        found = results.columns()
    else:
        found = columns_of(read_results(results) if isinstance(results, str | Path) else results)
    precision, recall = _evaluate(truth, usable(found, truth, path), evaluator)
    return _summarise(truth, precision, recall)


def read_truth(path: Path, image_ids: Sequence[int] | None = None) -> Truth:
    """Read an annotation file in COCO's format, or what it says of some of its images.

    It is read by the rules of training, but for names and sizes of images, which scoring does not need.
    Raises ValueError when it is not one, and for images that it lacks.
    """
    return truth_of(read_annotations(path, path.parent, names_and_sizes=False), image_ids)


def truth_of(annotations: Annotations, image_ids: Sequence[int] | None = None) -> Truth:
    """What has been read of an annotation file, or of some of its images. Raises as `read_truth`."""
    known = annotations.image_ids
    chosen = known if image_ids is None else np.unique(np.array(image_ids, dtype=np.int64))
    if len(strangers := np.setdiff1d(chosen, known)):
        raise ValueError(f"image_ids: {_some(strangers.tolist())} not in {annotations.path}: pass ids of its images")
    if not len(chosen):
        raise ValueError(f"no images to score: {annotations.path} lists {len(known)}, image_ids chooses none of them")
    category_ids = np.array([category.id for category in annotations.categories], dtype=np.int64)
    images = np.repeat(known, np.diff(annotations.starts))
    kept = np.isin(images, chosen)
    return Truth(
        chosen,
        {category.id: category.name for category in annotations.categories},
        images[kept],
        category_ids[annotations.labels[kept]],
        annotations.boxes[kept],
        annotations.areas[kept],
        annotations.crowd[kept],
        known,
    )


def usable(found: Columns, truth: Truth, path: Path) -> Columns:
    """Detections without those of classes that the ground truth lacks, which a warning names.

    path: the annotation file, for messages. Detections on images that `truth` leaves out are left out, too.
    Raises ValueError for what is not finite or has a negative size, and for images that the file lacks.
    """
    wrong = ~np.isfinite(found.boxes).all(axis=1) | (found.boxes[:, 2:] < 0).any(axis=1) | ~np.isfinite(found.scores)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        first = ", ".join(f"{name} {value[index].tolist()}" for name, value in found._asdict().items())
        raise ValueError(
            f"{int(wrong.sum())} detections are not finite or have a negative size, first {first} at {index}. "
            "A model that gives such boxes has diverged; in a file, check that bbox is [x, y, width, height]"
        )
    kept = np.isin(found.images, truth.image_ids)
    if len(strangers := np.setdiff1d(found.images[~kept], truth.known)):
        raise ValueError(
            f"detections on images that {path} lacks: image_id {_some(strangers.tolist())}. "
            "Score them against the annotation file of their own data set"
        )
    classed = np.isin(found.categories, list(truth.names))
    if not classed.all():
        others = _some(np.unique(found.categories[~classed]).tolist())
        warnings.warn(
            f"{int((~classed).sum())} detections of classes that {path} lacks (category_id {others}) are left out",
            stacklevel=3,
        )
    kept &= classed
    return Columns(*(column[kept] for column in found))


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _evaluate(truth: Truth, found: Columns, evaluator: Evaluator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run one evaluator.

    Returns precision [10 IoUs, 101 recalls, classes, 4 areas, 3 limits] and recall [10, classes, 4, 3]; -1: no objects.
    """
    # Here, and here alone, columns become dicts, which both evaluators take.
    objects = _plain(
        image_id=truth.images,
        category_id=truth.categories,
        bbox=truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowd.astype(np.int64),
    )
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    detections = _plain(
        image_id=found.images,
        category_id=found.categories,
        bbox=found.boxes,
        area=areas,
        score=found.scores,
        iscrowd=np.zeros(len(areas), dtype=np.int64),
    )
    if evaluator == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (objects, detections):
            # Filled by hand: loadRes would copy the ground truth, make polygons of boxes, and fail on no detections.
            table = COCO()
            table.dataset = {
                "images": [{"id": image_id} for image_id in truth.image_ids.tolist()],
                "categories": [{"id": category_id, "name": name} for category_id, name in truth.names.items()],
                "annotations": annotations,
            }
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _plain(**columns: NDArray[Any]) -> list[dict[str, Any]]:
    """A dict per row. Both evaluators mark "not matched" with id 0 and look rows up by id, so ids are 1, 2, ..."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": index, **dict(zip(columns, row, strict=True))} for index, row in enumerate(rows, start=1)]


def _mean(values: NDArray[np.float64]) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _summarise(truth: Truth, precision: NDArray[np.float64], recall: NDArray[np.float64]) -> Scores:
    """Take the means that COCO reports. Areas: all, small, medium, large; limits: 1, 10, 100 detections an image."""
    known, counts = np.unique(truth.categories[~truth.crowd], return_counts=True)
    objects = dict.fromkeys(truth.names, 0) | dict(zip(known.tolist(), counts.tolist(), strict=True))
    best = precision[..., -1]
    per_class = tuple(
        ClassScore(category_id, name, _mean(best[:, :, index, 0]), _mean(best[0, :, index, 0]), objects[category_id])
        for index, (category_id, name) in enumerate(truth.names.items())
    )
    metrics = (
        best[..., 0],
        best[0, ..., 0],
        best[5, ..., 0],
        *(best[..., area] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, 2] for area in (1, 2, 3)),
    )
    named = dict(zip(METRICS, map(_mean, metrics), strict=True))
    return Scores(**named, per_class=per_class, images=len(truth.image_ids))
