"""Whether scores can be trusted, and how well single images are done: against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coco_reference import columns_of, distinct, ground_of, oddities

from detr_container.compare.matching import TRUE, UNCOUNTED, ClassMatches, match
from detr_container.compare.quality import BINS, calibration, image_quality

BOX: list[float] = [10, 10, 50, 50]
AWAY: list[float] = [300, 300, 50, 50]


def counted_detections(matches: list[ClassMatches], threshold: int = 0) -> list[tuple[int, float, bool]]:
    """Image, score and whether it is right, of each detection that counts."""
    return [
        (int(one.image[place]), float(one.score[place]), bool(one.outcome[0, threshold, place] == TRUE))
        for one in matches
        for place in range(len(one.score))
        if one.outcome[0, threshold, place] != UNCOUNTED
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rounded", [True, False])
def test_calibration_is_that_of_a_loop(seed: int, rounded: bool) -> None:
    ground, found = oddities(seed)
    if not rounded:
        found = distinct(found, seed)
        found = found._replace(scores=found.scores**3)
    matches = match(ground, found)
    rows = counted_detections(matches)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for _, score, right in rows:
        bins[min(int(score * 10), 9)].append((score, right))  # score 1.0 is in the last
    ours = calibration(matches)
    assert len(bins) == BINS == 10
    assert ours.count.tolist() == [len(group) for group in bins]
    gaps = 0.0
    for place, group in enumerate(bins):
        if not group:
            assert math.isnan(ours.score[place])
            assert math.isnan(ours.right[place])
            continue
        score, right = (sum(column) / len(group) for column in zip(*group, strict=True))
        assert (ours.score[place], ours.right[place]) == pytest.approx((score, right))
        gaps += len(group) * abs(score - right)
    assert ours.error == pytest.approx(gaps / len(rows))
    assert not rounded or any(score == 1.0 for _, score, _ in rows)


def test_calibration_by_hand() -> None:
    ground = ground_of([(0, 0, BOX, False), (0, 0, [200, 0, 90, 90], True)])
    detections = [(0, 0, BOX, 1.0), (0, 0, AWAY, 0.95), (0, 0, AWAY, 0.0), (0, 0, [210, 10, 9, 9], 0.5)]
    ours = calibration(match(ground, columns_of(ground, detections)))
    assert ours.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]  # what lies on a crowd does not count
    assert (ours.score[9], ours.right[9]) == pytest.approx((0.975, 0.5))
    assert (ours.score[0], ours.right[0]) == (0.0, 0.0)
    assert ours.error == pytest.approx((2 * 0.475 + 0) / 3)


def test_calibration_of_nothing() -> None:
    ground = ground_of([(0, 0, BOX, False)])
    for matches in ([], match(ground, columns_of(ground, []))):
        ours = calibration(matches)
        assert ours.count.tolist() == [0] * BINS
        assert math.isnan(ours.error)
        assert np.isnan(ours.right).all()


def area(right: list[bool], total: int) -> float:
    """Under precision against recall: each object that is found adds the best precision from there on."""
    precision = [sum(right[: place + 1]) / (place + 1) for place in range(len(right))]
    return sum(max(precision[place:]) for place in range(len(right)) if right[place]) / total


@pytest.mark.parametrize("seed", range(4))
def test_the_quality_of_an_image_is_that_of_a_loop(seed: int) -> None:
    ground, found = oddities(seed)
    found = distinct(found, seed)
    matches = match(ground, found)
    ours = image_quality(matches, len(ground.images))
    assert len(ours) == len(ground.images)
    for number, quality in enumerate(ours.tolist()):
        total = int((~ground.crowd[ground.image == number]).sum())
        if not total:
            assert math.isnan(quality)
            continue
        areas = []
        for threshold in range(10):
            rows = sorted(
                (row for row in counted_detections(matches, threshold) if row[0] == number), key=lambda row: -row[1]
            )
            areas.append(area([right for _, _, right in rows], total))
        assert quality == pytest.approx(sum(areas) / 10)
    assert math.isnan(ours[1])
    assert ours[2] == 0.0
    assert np.nanmax(ours) > 0.1


def test_the_quality_of_an_image_by_hand() -> None:
    near = [10.0, 10.0, 50.0, 36.0]  # IoU 0.72 with BOX: right at five of the ten thresholds
    objects = [(0, 0, BOX, False), (0, 1, AWAY, False), (2, 0, BOX, False), (3, 0, BOX, True)]
    ground = ground_of(objects, 4, 2)
    detections = [
        *((0, 0, near, 0.9), (0, 1, AWAY, 0.8), (0, 1, BOX, 0.7)),
        *((1, 0, BOX, 0.9), (3, 1, BOX, 0.9), (2, 1, BOX, 0.9), (2, 0, BOX, 0.8)),
    ]
    quality = image_quality(match(ground, columns_of(ground, detections)), 4)
    assert quality[0] == pytest.approx((5 * 1.0 + 5 * (1 / 2) / 2) / 10)
    assert quality[2] == pytest.approx(0.5)  # a surer one of another class stands before it
    assert np.isnan(quality[[1, 3]]).all()
    assert np.isnan(image_quality([], 2)).all()
