"""What the comparison's arrays are held against: pycocotools itself, naive loops, and data that have every oddity."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import simulated
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from detr_container.compare.matching import Ground
from detr_container.datasets.run_lengths import RunLengths
from detr_container.tasks.detection.coco_results import records_of
from detr_container.tasks.detection.detections import Columns

Floats = NDArray[np.float64]
Object = tuple[int, int, Sequence[float], bool]
Detection = tuple[int, int, Sequence[float], float]
_STEP = st.integers(0, 3).map(lambda step: 16.0 * step)
_BOX = st.tuples(_STEP, _STEP, st.sampled_from([0.0, 16.0, 32.0, 48.0, 96.0]), st.sampled_from([0.0, 32.0, 64.0, 96.0]))


def ground_of(objects: Sequence[Object], images: int = 1, classes: int = 1) -> Ground:
    """Objects (image, class, box, crowd) as a data set; ids: 5, 10, ... of images and 3, 6, ... of classes."""
    boxes = np.array([box for _, _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    return Ground(
        np.arange(1, images + 1) * 5,
        np.arange(1, classes + 1) * 3,
        tuple(f"class {k}" for k in range(classes)),
        np.array([image for image, _, _, _ in objects], dtype=np.int64),
        np.array([label for _, label, _, _ in objects], dtype=np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        np.array([crowd for _, _, _, crowd in objects], dtype=np.bool_),
    )


def columns_of(ground: Ground, detections: Sequence[Detection]) -> Columns:
    """Detections (image, class, box, score) as arrays."""
    return Columns(
        ground.images[[image for image, _, _, _ in detections]] if detections else np.zeros(0, dtype=np.int64),
        ground.categories[[label for _, label, _, _ in detections]] if detections else np.zeros(0, dtype=np.int64),
        np.array([box for _, _, box, _ in detections], dtype=np.float64).reshape(-1, 4),
        np.array([score for _, _, _, score in detections], dtype=np.float64),
    )


def tiny_objects() -> SearchStrategy[list[Object]]:
    """A few objects in two images, of two classes: many overlap equally, and areas are at the limits of sizes."""
    return st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), _BOX, st.booleans()), max_size=6)


def tiny_detections() -> SearchStrategy[list[Detection]]:
    """A few detections in them, many of equal scores."""
    return st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), _BOX, st.sampled_from([0.0, 0.5, 1.0])), max_size=9)


def oddities(seed: int, images: int = 10, classes: int = 5, many: int = 130) -> tuple[Ground, Columns]:
    """A data set and detections with everything that is rare.

    Crowds and detections on them, a class without objects and one without detections, images without objects and
    without detections, very many detections of a class in one image, equal scores, boxes of no size, identical boxes,
    and areas that are exactly at a limit.
    """
    rng = np.random.default_rng(seed)
    whole = simulated.scene(images, classes, seed, objects=5, crowds=0.15)
    old = whole.ground
    kept = rng.permutation(np.flatnonzero((old.label != classes - 1) & (old.image != 1)))
    box, area = old.box[kept], old.area[kept]
    box[0, 2] = 0
    box[1], area[1] = box[2], area[2]
    area[3:5] = 32.0**2, 96.0**2
    ground = Ground(old.images, old.categories, old.names, old.image[kept], old.label[kept], box, area, old.crowd[kept])
    parts = [simulated.detect(simulated.Scene(ground, whole.hard), 1.0, seed + 1, per_image=12)]

    def more(boxes: Sequence[Sequence[float]] | Floats, place: int, label: int) -> None:
        count, image, category = len(boxes), ground.images[place], ground.categories[label]
        parts.append(Columns(np.full(count, image), np.full(count, category), np.array(boxes), rng.random(count)))

    for number in np.flatnonzero(ground.crowd).tolist() + rng.integers(0, len(box), 6).tolist():
        x, y, width, height = ground.box[number].tolist()
        inside = [[x + width / 4, y, width / 2, height], [x, y, width, height], [x, y, width, 0.0]]
        more(inside, ground.image[number], ground.label[number])
    one = np.flatnonzero((ground.label == 0) & (ground.image > 2))[0]
    crowded = np.tile(ground.box[one], (many, 1))
    crowded[:, :2] += rng.normal(0, 4, (many, 2))
    crowded[:3, 2:] = 32, 96
    more(crowded, ground.image[one], 0)
    more([[5.0, 5.0, 32.0, 32.0]], 1, classes - 1)
    found = Columns(*(np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)))
    chosen = np.flatnonzero((found.categories != ground.categories[1]) & (found.images != ground.images[2]))
    chosen = rng.permutation(chosen)
    return ground, Columns(
        found.images[chosen], found.categories[chosen], found.boxes[chosen], found.scores[chosen].round(1)
    )


def with_masks(ground: Ground, found: Columns, seed: int) -> tuple[Ground, Columns]:
    """The same with masks for all objects and detections; some of them are empty, and some identical."""
    objects, detections = simulated.outlines(ground.box, seed), simulated.outlines(found.boxes, seed + 1)
    # The exact mask of an object for every third detection of its box.
    rows = [
        int(same[0]) if place % 3 == 0 and len(same := np.flatnonzero((ground.box == box).all(axis=1))) else -1
        for place, box in enumerate(found.boxes)
    ]
    masks = [objects[row] if row >= 0 else detections[place] for place, row in enumerate(rows)]
    return replace(ground, masks=objects), found._replace(masks=RunLengths.of(masks))


def distinct(found: Columns, seed: int) -> Columns:
    """The same with other scores, no two of them equal."""
    scores = np.random.default_rng(seed).permutation(len(found.scores)) + 1.0
    return found._replace(scores=scores / (len(scores) + 1))


def repeated(ground: Ground, found: Columns, times: Sequence[int]) -> tuple[Ground, Columns]:
    """A data set in which each image really is so many times, each time as an image of its own."""
    ids, objects, detections = [], [], []
    for place, count in enumerate(times):
        for copy in range(count):
            ids.append(int(ground.images[place]) * 1000 + copy)
            objects += [(number, len(ids) - 1) for number in np.flatnonzero(ground.image == place)]
            detections += [(row, ids[-1]) for row in np.flatnonzero(found.images == ground.images[place])]
    of, where = np.array(objects, dtype=np.int64).reshape(-1, 2).T
    rows, images = np.array(detections, dtype=np.int64).reshape(-1, 2).T
    again = Ground(
        np.array(ids), ground.categories, ground.names, where,
        ground.label[of], ground.box[of], ground.area[of], ground.crowd[of], ground.masks and ground.masks.take(of),
    )  # fmt: skip
    masks = found.masks and found.masks.take(rows)
    return again, Columns(images, found.categories[rows], found.boxes[rows], found.scores[rows], masks)


def pycocotools_precision(ground: Ground, found: Columns, masks: bool = False) -> Floats:
    """Precision [10 IoUs, 101 recalls, K classes, 4 areas] of at most 100 detections; -1 without objects.

    masks: of those, by detectron2's rule that a detection is as large as its mask.
    """
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: dict[str, Any] = simulated.annotation_file(simulated.Scene(ground, np.zeros(0)))
    rows: list[dict[str, Any]] = [
        {**record, "id": number, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
        for number, record in enumerate(records_of(found._replace(masks=None)), start=1)
    ]
    for row, code in zip(rows, found.masks, strict=True) if masks and found.masks else ():
        row |= {"segmentation": code, "area": float(mask.area(code))}
    tables = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truth["annotations"], rows):
            table = COCO()
            table.dataset = {**truth, "annotations": annotations}
            table.createIndex()
            tables.append(table)
        evaluation = COCOeval(*tables, "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]


def pycocotools_metrics(ground: Ground, found: Columns, masks: bool = False) -> tuple[Floats, Floats]:
    """AP, AP50, AP75, APs, APm and APl by class [K, 6] and overall [6] as COCO takes means; NaN for COCO's -1."""
    precision = pycocotools_precision(ground, found, masks)
    parts = [precision[..., 0], precision[:1, ..., 0], precision[5:6, ..., 0], *(precision[..., a] for a in (1, 2, 3))]

    def mean(values: Floats) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else np.nan

    by_class = [[mean(part[..., k]) for part in parts] for k in range(len(ground.names))]
    return np.array(by_class).reshape(-1, 6), np.array([mean(part) for part in parts])


def naive_iou(box: Sequence[float], other: Sequence[float], crowd: bool = False) -> float:
    """IoU of two boxes x, y, width, height; with a crowd, the share of the first that is within."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    own, common = box[2] * box[3], width * height
    return common / (own if crowd else own + other[2] * other[3] - common)


def naive_mask_iou(mask: NDArray[np.uint8], other: NDArray[np.uint8], crowd: bool = False) -> float:
    """IoU of two masks [h, w]; with a crowd, the share of the first that is within."""
    common = int((mask & other).sum())
    if not common:
        return 0.0
    return common / int(mask.sum() if crowd else (mask | other).sum())


def naive_precision(right: Sequence[bool], total: int) -> list[float]:
    """At each of 101 recalls, the best precision of any number of detections (surest first) that reaches it."""
    points, hits = [], 0
    for place, one in enumerate(right, start=1):
        hits += one
        points.append((hits / total, hits / place))
    return [max((p for recall, p in points if recall >= least), default=0.0) for least in np.linspace(0, 1, 101)]
