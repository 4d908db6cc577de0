"""COCO's average precision for any weights of the images, from matches alone.

A resample of the images is a weight for each, how often it was drawn. Every detection and object then counts that
often, and precision and recall follow from cumulated weights. It is the AP of the resampled data set itself, not an
approximation: precision needs to be known only where an object is found, since it falls everywhere else.

Among equal scores COCO's order is that of the images, and in an image that of its detections. An image drawn
several times stands in the resampled data set as so many images beside each other, where the image itself stood.
Where one of its detections finds an object and another of the same score does not, its copies therefore alternate, and
are weighed one by one.

Shapes: B weightings, N images, K classes, A = 4 areas, T = 10 thresholds, R = 101 recalls; of one class n detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .matching import AREAS, THRESHOLDS, TRUE, UNCOUNTED, ClassMatches

RECALLS = np.linspace(0.0, 1.0, 101)
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_CHUNK = 4_000_000
"""How many weighted detections to hold at once: 32 MB an array."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """by_class: [B, K, 6] in the order of METRICS, NaN where a class has no objects; overall: [B, 6], their means."""

    by_class: Floats

    @property
    def overall(self) -> Floats:
        """Means over the classes that have objects; NaN where none has."""
        present = ~np.isnan(self.by_class)
        count = present.sum(axis=1)
        total = np.where(present, self.by_class, 0.0).sum(axis=1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def metrics_of(matches: Sequence[ClassMatches], weights: Floats, threads: int = 2) -> Metrics:
    """AP, AP50, AP75 and AP by size of every class for weights [B, N]."""
    with ThreadPoolExecutor(threads) as pool:
        rows = list(pool.map(lambda one: _class_metrics(one, weights), matches))
    return Metrics(np.stack(rows, axis=1) if rows else np.zeros((len(weights), 0, len(METRICS))))


def precision_at_recall(one: ClassMatches, threshold: int) -> Floats | None:
    """Precision [R] at COCO's recalls for IoU THRESHOLDS[threshold], all sizes; None for a class without objects."""
    total = int(one.counted[0].sum())
    outcome = one.outcome[0, threshold]
    return interpolated(outcome[outcome != UNCOUNTED] == TRUE, total) if total else None


def interpolated(right: NDArray[np.bool_], total: int) -> Floats:
    """Precision [R] at COCO's recalls of detections that count, surest first, when `total` objects are to be found."""
    places = np.flatnonzero(right)
    hits = np.arange(1, len(places) + 1, dtype=np.float64)
    best = np.maximum.accumulate((hits / (places + 1 + np.spacing(1)))[::-1])[::-1]
    reached = np.searchsorted(hits / total, RECALLS, side="left")
    return np.append(best, 0.0)[reached]


def _class_metrics(one: ClassMatches, weights: Floats) -> Floats:
    """[B, 6] of one class."""
    most = weights.max(axis=0, initial=0.0)
    one, copies = _copies_apart(one, np.ceil(most).astype(np.int64))
    rows = max(1, _CHUNK // max(1, len(one.score)))
    starts = range(0, len(weights), rows)
    return np.concatenate([_few(one, _with_copies(weights[start : start + rows], copies)) for start in starts])


def _copies_apart(one: ClassMatches, most: NDArray[np.int64]) -> tuple[ClassMatches, NDArray[np.int64]]:
    """Detections as they stand when every image is repeated `most` [N] times, where their order matters.

    That is where detections of one image have one score, some of them find an object and not all do the same. Returns
    the matches, of which an image N + i is copy i of those returned [c, 2], as image and number of the copy.
    """
    count = len(one.score)
    begins = np.r_[True, (np.diff(one.score) != 0) | (np.diff(one.image) != 0)][:count]
    starts = np.flatnonzero(begins)
    outcome = one.outcome.reshape(len(AREAS) * len(THRESHOLDS), count)
    unlike = np.r_[False, (outcome[:, 1:] != outcome[:, :-1]).any(axis=0)][:count] & ~begins
    split = np.zeros(len(starts), dtype=bool)
    if unlike.any():
        split = np.logical_or.reduceat(unlike, starts) & np.logical_or.reduceat((outcome == TRUE).any(axis=0), starts)
    if not split.any():
        return one, np.zeros((0, 2), dtype=np.int64)
    order, image, copies = list[int](), list[int](), list[tuple[int, int]]()
    for start, end, apart in zip(starts.tolist(), [*starts[1:].tolist(), count], split.tolist(), strict=True):
        drawn = int(one.image[start])
        for copy in range(int(most[drawn]) if apart else 1):
            order += range(start, end)
            image += [len(most) + len(copies) if apart else drawn] * (end - start)
            copies += [(drawn, copy)] * apart
    placed = replace(
        one,
        image=np.array(image, dtype=np.int64),
        score=one.score[order],
        outcome=np.take(one.outcome, order, axis=2),
        found=one.found[order],
        row=one.row[order],
    )
    return placed, np.array(copies, dtype=np.int64).reshape(-1, 2)


def _with_copies(weights: Floats, copies: NDArray[np.int64]) -> Floats:
    """Weights [b, N + c] of the images and of single copies of them, which add up to the image's."""
    image, copy = copies.T
    return np.concatenate([weights, np.clip(weights[:, image] - copy, 0.0, 1.0)], axis=1) if len(copies) else weights


def _few(one: ClassMatches, weights: Floats) -> Floats:
    """[b, 6] of one class for few enough weightings."""
    result = np.full((len(weights), len(METRICS)), np.nan)
    drawn = weights[:, one.image]
    for area in range(len(AREAS)):
        total = weights[:, one.object_image[one.counted[area]]].sum(axis=1)
        precision = _average_precisions(one.outcome[area], drawn, total)
        present = total > 0
        if area == 0:
            result[present, :3] = np.stack([precision.mean(axis=1), precision[:, 0], precision[:, 5]], axis=1)[present]
        else:
            result[present, 2 + area] = precision.mean(axis=1)[present]
    return result


def _average_precisions(outcome: NDArray[np.uint8], drawn: Floats, total: Floats) -> Floats:
    """AP [b, T] of one area: outcome [T, n], drawn [b, n] the weight of each detection, total [b] that of objects."""
    result = np.zeros((len(drawn), len(THRESHOLDS)))
    # What counts hardly differs between thresholds: one sum over what counts at any of them, less the few that do not.
    relevant = np.flatnonzero((outcome != UNCOUNTED).any(axis=0))
    outcome, drawn = outcome[:, relevant], drawn[:, relevant] if len(relevant) < drawn.shape[1] else drawn
    seen = np.cumsum(drawn, axis=1)
    for threshold, row in enumerate(outcome):
        places = np.flatnonzero(row == TRUE)
        if not len(places):
            continue
        hits = np.cumsum(drawn[:, places], axis=1)
        count = seen[:, places]
        left_out = np.flatnonzero(row == UNCOUNTED)
        if len(left_out):
            less = np.cumsum(drawn[:, left_out], axis=1)
            before = np.searchsorted(left_out, places)
            count -= np.where(before > 0, less[:, before - 1], 0.0)
        result[:, threshold] = _area_under(hits, count, total)
    return result


def _area_under(hits: Floats, count: Floats, total: Floats) -> Floats:
    """Mean precision over the recalls [b], from cumulated hits and detections [b, m] at each hit."""
    best = hits / (count + np.spacing(1))
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.nan_to_num(hits / total[:, None], posinf=0.0)
    # How many of the recalls are reached at each hit: rounding finds the nearest, and comparing whether it is reached.
    nearest = np.rint(recall * 100).astype(np.int64)
    reached = nearest + (RECALLS[nearest] <= recall)
    steps = np.diff(reached, axis=1, prepend=0)
    # Row by row in memory, so that rounding is the same whatever rows are beside one.
    return np.ascontiguousarray(best * steps).sum(axis=1) / len(RECALLS)
