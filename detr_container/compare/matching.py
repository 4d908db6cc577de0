"""Which detection found which object, for every class, size and IoU: COCO's matching, kept per image.

Average precision needs nothing else, so that it can be computed again for any weighting of the images without
reading a box or a mask. The rules are those of pycocotools' COCOeval.evaluateImg, and the metrics that follow are the
same. Of boxes and of masks they differ in nothing but what overlaps, and how large a detection is.

Shapes: N images, G objects, A = 4 areas, T = 10 thresholds; of one class: n detections, g objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detr_container.base.terminal import shown
from detr_container.datasets.run_lengths import RunLengths
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.scoring import Truth

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas in pixels of the image on disk, both ends included."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
LIMIT = 100
"""Detections of one class in one image that count, the surest first."""
FALSE, TRUE, UNCOUNTED = 0, 1, 2

_LOW = np.array([low for low, _ in AREAS.values()])[:, None]
_HIGH = np.array([high for _, high in AREAS.values()])[:, None]


@dataclass(frozen=True)
class Ground:
    """The objects of a data set.

    images: [N] ids, rising; categories: ids, rising; names: theirs; of each object image: [G] and label: [G]
    (indices into those), box: [G, 4] x, y, width, height in pixels, area: [G] and crowd: [G]; masks: [G], None where
    they were not read.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    names: tuple[str, ...]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: RunLengths | None = None

    @classmethod
    def of(cls, truth: Truth) -> Ground:
        """The same by place instead of by id."""
        categories = np.array(list(truth.names), dtype=np.int64)
        return cls(
            truth.image_ids,
            categories,
            tuple(map(shown, truth.names.values())),
            np.searchsorted(truth.image_ids, truth.images),
            np.searchsorted(categories, truth.categories),
            truth.boxes,
            truth.areas,
            truth.crowd,
            truth.masks,
        )


@dataclass(frozen=True)
class Regions:
    """What is compared of detections and objects. area: [n] of every detection in pixels, for COCO's sizes.

    overlap: takes rows of detections [m] and objects [g], all of one image; gives their IoU [m, g], of a crowd the
    share of the detection that is within.
    """

    area: NDArray[np.float64]
    overlap: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def of_boxes(ground: Ground, found: Columns) -> Regions:
    """The boxes of both."""
    area = found.boxes[:, 2] * found.boxes[:, 3]
    return Regions(area, lambda rows, objects: iou(found.boxes[rows], ground.box[objects], ground.crowd[objects]))


def of_masks(ground: Ground, found: Columns) -> Regions:
    """The masks of both. Raises ValueError where either has none."""
    if ground.masks is None or found.masks is None:
        who = "the annotation file has" if ground.masks is None else "the detections have"
        raise ValueError(f"{who} no masks: only their boxes can be compared")
    theirs, objects_of = found.masks, ground.masks

    def overlap(rows: NDArray[np.int64], objects: NDArray[np.int64]) -> NDArray[np.float64]:
        from pycocotools import mask

        crowd = ground.crowd[objects].astype(np.uint8)
        mine, those = ([codes[row] for row in some] for codes, some in ((theirs, rows), (objects_of, objects)))
        shared: NDArray[np.float64] = mask.iou(mine, those, crowd)
        return shared

    return Regions(theirs.areas(), overlap)


@dataclass(frozen=True)
class ClassMatches:
    """One class. Detections come surest first; of equal scores, those of earlier images.

    image: [n]; score: [n]; outcome: [A, T, n] FALSE, TRUE or UNCOUNTED (on a crowd, or unmatched and of another
    size); found: [n] which object was found at IoU 0.5, all sizes, as an index into the data set's, or -1;
    row: [n] where the detection stands in the run's file;
    object_image: [g]; counted: [A, g] whether an object of this size is to be found.
    """

    image: NDArray[np.int64]
    score: NDArray[np.float64]
    outcome: NDArray[np.uint8]
    found: NDArray[np.int64]
    row: NDArray[np.int64]
    object_image: NDArray[np.int64]
    counted: NDArray[np.bool_]


def match(ground: Ground, found: Columns, by: Callable[[Ground, Columns], Regions] = of_boxes) -> list[ClassMatches]:
    """Match a run's detections to the objects, class by class; by: `of_boxes`, or `of_masks` where both have them."""
    regions = by(ground, found)
    label = np.searchsorted(ground.categories, found.categories)
    image = np.searchsorted(ground.images, found.images)
    order = np.lexsort((-found.scores, image, label))
    order = order[_rank_within(label[order], image[order]) < LIMIT]
    ends = np.searchsorted(label[order], np.arange(len(ground.names) + 1))
    objects = np.lexsort((ground.image, ground.label))
    object_ends = np.searchsorted(ground.label[objects], np.arange(len(ground.names) + 1))
    return [
        _match_class(
            ground,
            objects[object_ends[k] : object_ends[k + 1]],
            order[ends[k] : ends[k + 1]],
            image,
            found.scores,
            regions,
        )
        for k in range(len(ground.names))
    ]


def iou(boxes: NDArray[np.float64], objects: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU [n, g] of boxes [n, 4] with objects [g, 4], x, y, width, height; of a crowd, the share of the box within."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], objects[None, :, :2] + objects[None, :, 2:])
    width, height = np.moveaxis(high - low, -1, 0)
    common = np.where((width > 0) & (height > 0), width * height, 0.0)
    area, other = boxes[:, 2] * boxes[:, 3], objects[:, 2] * objects[:, 3]
    union = np.where(crowd, area[:, None], area[:, None] + other - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _rank_within(label: NDArray[np.int64], image: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each detection among those of its class and image, which stand together."""
    if not len(label):
        return np.zeros(0, dtype=np.int64)
    first = np.r_[True, (np.diff(label) != 0) | (np.diff(image) != 0)]
    starts = np.flatnonzero(first)
    return np.arange(len(label)) - starts[np.cumsum(first) - 1]


def _match_class(
    ground: Ground,
    objects: NDArray[np.int64],
    rows: NDArray[np.int64],
    image: NDArray[np.int64],
    scores: NDArray[np.float64],
    regions: Regions,
) -> ClassMatches:
    """objects: [g] of this class, by image; rows: [n] of this class, by image, surest first."""
    area = ground.area[objects]
    ignored = ground.crowd[objects] | (area < _LOW) | (area > _HIGH)
    size = regions.area[rows]
    outcome = np.where((size < _LOW) | (size > _HIGH), UNCOUNTED, FALSE).astype(np.uint8)[:, None].repeat(10, axis=1)
    hit = np.full(len(rows), -1)
    for mine, theirs in _together(image[rows], ground.image[objects]):
        overlap = regions.overlap(rows[mine], objects[theirs])
        state = _State(ignored[:, theirs], ground.crowd[objects[theirs]])
        for place in np.flatnonzero(overlap.max(axis=1) >= THRESHOLDS[0]):
            index = mine.start + place
            which = state.take(overlap[place])
            matched = which >= 0
            state_of = np.where(np.take_along_axis(ignored[:, theirs], which, axis=1), UNCOUNTED, TRUE)
            outcome[:, :, index] = np.where(matched, state_of, outcome[:, :, index])
            if which[0, 0] >= 0:
                hit[index] = objects[theirs.start + which[0, 0]]
    order = np.argsort(-scores[rows], kind="stable")
    return ClassMatches(
        image[rows][order],
        scores[rows][order],
        outcome[:, :, order],
        hit[order],
        rows[order],
        ground.image[objects],
        ~ignored,
    )


def _together(a: NDArray[np.int64], b: NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Where the same image stands in two rising lists."""
    common = np.intersect1d(a, b)
    sides = [zip(np.searchsorted(x, common, "left"), np.searchsorted(x, common, "right"), strict=True) for x in (a, b)]
    return [(slice(*one), slice(*other)) for one, other in zip(*sides, strict=True)]


class _State:
    """The objects of one class in one image that are still free, for every area and threshold at once.

    ignored: [A, g]; crowd: [g]: a crowd can be found again and again.
    """

    def __init__(self, ignored: NDArray[np.bool_], crowd: NDArray[np.bool_]) -> None:
        self.ignored, self.crowd = ignored[:, None], crowd
        self.free = np.ones((len(AREAS), len(THRESHOLDS), len(crowd)), dtype=bool)

    def take(self, overlap: NDArray[np.float64]) -> NDArray[np.int64]:
        """The object [A, T] that a detection with these IoUs [g] finds, or -1; it is not free any more.

        An object to be found comes before one that is not counted, then the largest IoU, of equal ones the last.
        """
        possible = self.free & (overlap >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None])
        # IoU is at most 1, so that 2 more puts those to be found first.
        worth = np.where(possible, overlap + np.where(self.ignored, 0.0, 2.0), -1.0)
        last = worth.shape[-1] - 1
        which = last - worth[..., ::-1].argmax(axis=-1)
        areas, thresholds = np.indices(which.shape)
        which = np.where(worth[areas, thresholds, which] < 0, -1, which)
        taken = (which[..., None] == np.arange(last + 1)) & ~self.crowd
        self.free &= ~taken
        return which
