"""COCO's average precision of boxes and of masks: from detections and an annotation file to metrics.

Two evaluators compute the same metrics: faster-coco-eval (the default) and pycocotools (the reference). Both are given
the same plain copy of the ground truth and of the detections, and both leave precision and recall arrays, which are
averaged here, once. Masks stay run-length codes, which evaluators compare as they are.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detr_container.datasets.annotations import Annotations, read_annotations
from detr_container.datasets.masks import run_lengths
from detr_container.datasets.run_lengths import RunLengths

from .coco_results import ResultRecord, columns_of, read_results
from .detections import Columns, Detections, other_sizes
from .scores import MASK_METRICS, METRICS, ClassScore, MaskClassScore, MaskScores, Scores

Evaluator = Literal["faster", "pycocotools"]


@dataclass(frozen=True)
class Truth:
    """What an annotation file says of some of its images, for either evaluator.

    image_ids: rising; names: of all classes by id, rising; of each object images: [A] and categories: [A] by id, boxes:
    [A, 4] x, y, width, height in pixels, areas: [A], crowd: [A]; known: the ids of all images of the file; masks: [A],
    None where the file was read without segmentations.
    """

    image_ids: NDArray[np.int64]
    names: dict[int, str]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    known: NDArray[np.int64]
    masks: RunLengths | None = None


def score(
    annotations: str | Path | Annotations,
    results: Detections | Sequence[ResultRecord] | str | Path,
    evaluator: Evaluator = "faster",
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Compute COCO's AP of `results` (arrays, records, or a file of those) against an annotation file, read or not.

    Of boxes, and of masks where both have them (a file that has been read: where it was with its segmentations).
    image_ids: score only these images; detections on others of the file are then left out. Default: all.
    Neither the file nor the records are altered. No detections give zeros. Of one image's detections the 100 best
    of each class count, as in COCO. Detections of a class that the file lacks are left out with a warning.
    Raises ValueError for detections on images that the file lacks, and for damaged files or records.
    """
    if evaluator not in ("faster", "pycocotools"):
        raise ValueError(f"evaluator {evaluator!r}: it is 'faster' or 'pycocotools'")
    if isinstance(results, Detections):
        found = results.columns()
    else:
        found = columns_of(read_results(results) if isinstance(results, str | Path) else results)
    if isinstance(annotations, Annotations):
        path, truth = annotations.path, truth_of(annotations, image_ids, found.masks is not None)
    else:
        path, truth = Path(annotations), read_truth(Path(annotations), image_ids, found.masks is not None)
    found = usable(found, truth, path)
    scores = _summarise(truth, *_evaluate(truth, found, evaluator, "bbox"))
    if truth.masks is None or found.masks is None:
        return scores
    masks = _summarise(truth, *_evaluate(truth, found, evaluator, "segm"))
    return replace(scores, masks=_of_masks(masks))


def read_truth(path: Path, image_ids: Sequence[int] | None = None, masks: bool = False) -> Truth:
    """Read an annotation file in COCO's format, or what it says of some of its images.

    masks: with the objects' masks, which it must have then, and the images' sizes.
    It is read by the rules of training, but for names and sizes of images, which scoring of boxes does not need.
    Raises ValueError when it is not one, and for images that it lacks.
    """
    return truth_of(read_annotations(path, path.parent, names_and_sizes=False, segmentations=masks), image_ids, masks)


def truth_of(annotations: Annotations, image_ids: Sequence[int] | None = None, masks: bool = True) -> Truth:
    """What has been read of an annotation file, or of some of its images. Raises as `read_truth`.

    masks: with the objects' masks where it was read with segmentations.
    """
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
        run_lengths(annotations).take(kept) if masks and annotations.segmentations is not None else None,
    )


def usable(found: Columns, truth: Truth, path: Path) -> Columns:
    """Detections without those of classes that the ground truth lacks, which a warning names.

    path: the annotation file, for messages. Detections on images that `truth` leaves out are left out, too.
    Raises ValueError for what is not finite or has a negative size, for images that the file lacks, and for masks of
    another size than their image's.
    """
    wrong = ~np.isfinite(found.boxes).all(axis=1) | (found.boxes[:, 2:] < 0).any(axis=1) | ~np.isfinite(found.scores)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        first = ", ".join(
            f"{name} {value[index].tolist()}" for name, value in found._asdict().items() if name != "masks"
        )
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
    if truth.masks is not None and found.masks is not None:
        sizes = np.concatenate([truth.masks.sizes, found.masks.sizes])
        if wrong_size := other_sizes(np.concatenate([truth.images, found.images]), sizes):
            raise ValueError(
                f"{wrong_size}: those of {path}, and those of detections. Masks are as large as the image on disk"
            )
    kept &= classed
    masks = None if found.masks is None else found.masks.take(kept)
    return Columns(found.images[kept], found.categories[kept], found.boxes[kept], found.scores[kept], masks)


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _evaluate(
    truth: Truth, found: Columns, evaluator: Evaluator, by: Literal["bbox", "segm"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run one evaluator on boxes or on masks.

    Returns precision [10 IoUs, 101 recalls, classes, 4 areas, 3 limits] and recall [10, classes, 4, 3]; -1: no objects.
    """
    if evaluator == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    images = [{"id": image_id, "height": 0, "width": 0} for image_id in truth.image_ids.tolist()]
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in _rows(truth, found, by):
            # Filled by hand: loadRes would copy the ground truth, make polygons of boxes, and fail on no detections.
            table = COCO()
            table.dataset = {
                "images": images,
                "categories": [{"id": category_id, "name": name} for category_id, name in truth.names.items()],
                "annotations": annotations,
            }
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, by)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _rows(truth: Truth, found: Columns, by: Literal["bbox", "segm"]) -> Iterator[list[dict[str, Any]]]:
    """The objects, then the detections, as dicts, which both evaluators take."""
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    regions: list[dict[str, Any]] = [{"bbox": truth.boxes}, {"bbox": found.boxes}]
    if by == "segm":
        assert truth.masks is not None
        assert found.masks is not None
        # The area of a detection is what decides on its size: of its mask, where masks are compared.
        regions, areas = [{"segmentation": truth.masks}, {"segmentation": found.masks}], found.masks.areas()
    yield _plain(
        image_id=truth.images,
        category_id=truth.categories,
        area=truth.areas,
        iscrowd=truth.crowd.astype(np.int64),
        **regions[0],
    )
    yield _plain(
        image_id=found.images,
        category_id=found.categories,
        area=areas,
        score=found.scores,
        iscrowd=np.zeros(len(areas), dtype=np.int64),
        **regions[1],
    )


def _plain(**columns: NDArray[Any] | RunLengths) -> list[dict[str, Any]]:
    """A dict per row. Both evaluators mark "not matched" with id 0 and look rows up by id, so ids are 1, 2, ..."""
    rows = zip(
        *(column if isinstance(column, RunLengths) else column.tolist() for column in columns.values()), strict=True
    )
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
    return Scores(**named, per_class=per_class, images=len(truth.image_ids), masks=None)


def _of_masks(scores: Scores) -> MaskScores:
    """Those of an evaluation of masks that are kept."""
    names = [name.removeprefix("mask_") for name in MASK_METRICS]
    classes = tuple(MaskClassScore(row.ap, row.ap50) for row in scores.per_class)
    return MaskScores(**{name: getattr(scores, name) for name in names}, per_class=classes)
