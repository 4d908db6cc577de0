"""What else matches show of a run: whether its scores can be trusted, and how well it does on each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matching import TRUE, UNCOUNTED, ClassMatches

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Detections (predictions) by score, in BINS of equal width: [BINS] mean score, share that is right, how many.

    error: the mean distance between the two, weighted by how many (expected calibration error); NaN of none.
    """

    score: NDArray[np.float64]
    right: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


def calibration(matches: Sequence[ClassMatches]) -> Calibration:
    """The calibration of all detections that count; right are those that are so at IoU 0.5."""
    score = np.concatenate([one.score for one in matches]) if matches else np.zeros(0)
    outcome = np.concatenate([one.outcome[0, 0] for one in matches]) if matches else np.zeros(0)
    kept = outcome != UNCOUNTED
    return calibration_of(score[kept], outcome[kept] == TRUE)


def calibration_of(score: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> Calibration:
    """The calibration of scores [n], of which some are right [n]."""
    place = np.clip((score * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, score, BINS) / count
        share = np.bincount(place, right, BINS) / count
        error = float(np.nansum(np.abs(mean - share) * count) / count.sum())
    return Calibration(mean, share, count, error)


def image_quality(matches: Sequence[ClassMatches], images: int) -> NDArray[np.float64]:
    """The AP of each image alone [N], its classes pooled, mean over IoU 0.5 to 0.95; NaN without objects.

    The area under precision against recall, not sampled at 101 recalls.
    """
    total = np.zeros(images)
    for one in matches:
        np.add.at(total, one.object_image[one.counted[0]], 1)
    image = np.concatenate([one.image for one in matches]) if matches else np.zeros(0, dtype=np.int64)
    score = np.concatenate([one.score for one in matches]) if matches else np.zeros(0)
    outcome = np.concatenate([one.outcome[0] for one in matches], axis=1) if matches else np.zeros((10, 0))
    order = np.lexsort((-score, image))
    ends = np.searchsorted(image[order], np.arange(images + 1))
    quality = np.full(images, np.nan)
    for number in np.flatnonzero(total):
        rows = outcome[:, order[ends[number] : ends[number + 1]]]
        quality[number] = np.mean([_area(row, total[number]) for row in rows]) if rows.size else 0.0
    return quality


def _area(outcome: NDArray[np.uint8], total: float) -> float:
    places = np.flatnonzero(outcome[outcome != UNCOUNTED] == TRUE)
    if not len(places):
        return 0.0
    precision = np.arange(1, len(places) + 1) / (places + 1)
    return float(np.maximum.accumulate(precision[::-1]).sum() / total)
