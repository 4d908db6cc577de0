"""What kinds of errors there are and what each costs: by hand, by loops, and by fixing detections for pycocotools."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from coco_reference import Detection, Object, columns_of, distinct, ground_of, naive_iou, oddities, pycocotools_metrics

from detr_container.compare.errors import KINDS, Errors, breakdown
from detr_container.compare.matching import FALSE, TRUE, Ground, match
from detr_container.compare.precision import metrics_of
from detr_container.tasks.detection.detections import Columns

A: list[float] = [0, 0, 100, 100]
"""An object; its neighbours below are B, far away, and parts of it, which overlap it with IoU = their share."""
B: list[float] = [300, 300, 100, 100]
NOWHERE: list[float] = [500, 0, 50, 50]


def share(of: float) -> list[float]:
    return [0, 0, 100, 100 * of]


def evaluated(objects: list[Object], detections: list[Detection], classes: int = 2) -> Errors:
    ground = ground_of(objects, 2, classes)
    found = columns_of(ground, detections)
    return breakdown(ground, found, match(ground, found))


def counts(errors: Errors) -> dict[str, int]:
    """Those that occur."""
    return {kind: count for kind, count in errors.count.items() if count}


@pytest.mark.parametrize(
    ("detection", "kinds"),
    [
        ((0, 0, A, 0.5), {}),
        ((0, 0, share(0.51), 0.5), {}),
        ((0, 0, share(0.49), 0.5), {"localisation": 1}),
        ((0, 0, share(0.11), 0.5), {"localisation": 1}),
        ((0, 0, share(0.09), 0.5), {"background": 1, "missed": 1}),
        ((0, 0, NOWHERE, 0.5), {"background": 1, "missed": 1}),
        ((1, 0, A, 0.5), {"background": 1, "missed": 1}),
        ((0, 1, A, 0.5), {"classification": 1}),
        ((0, 1, share(0.51), 0.5), {"classification": 1}),
        ((0, 1, share(0.49), 0.5), {"both": 1, "missed": 1}),
        ((0, 1, share(0.11), 0.5), {"both": 1, "missed": 1}),
        ((0, 1, share(0.09), 0.5), {"background": 1, "missed": 1}),
    ],
)
def test_one_object_and_one_detection(detection: Detection, kinds: dict[str, int]) -> None:
    errors = evaluated([(0, 0, A, False)], [detection])
    assert counts(errors) == kinds
    assert errors.ap50 == pytest.approx(0.0 if kinds else 1.0)


def test_a_second_detection_of_an_object_is_a_duplicate_and_costs_what_it_displaces() -> None:
    errors = evaluated([(0, 0, A, False), (0, 0, B, False)], [(0, 0, A, 0.9), (0, 0, share(0.8), 0.8), (0, 0, B, 0.7)])
    assert counts(errors) == {"duplicate": 1}
    # Precision is 1 at the 51 recalls up to 0.5 and 2/3 beyond.
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert errors.cost == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"duplicate": 1 - errors.ap50})


def test_a_box_that_is_off_its_own_object_is_not_called_a_duplicate_or_another_class() -> None:
    # All have IoU 0.4 or 0.5 with the object of their class, which is found already in the first two cases; the last
    # covers one of another class exactly.
    twice = evaluated([(0, 0, A, False)], [(0, 0, A, 0.9), (0, 0, share(0.4), 0.8)])
    assert counts(twice) == {"localisation": 1}
    half = evaluated([(0, 0, A, False)], [(0, 0, A, 0.9), (0, 0, share(0.5), 0.8)])
    assert counts(half) == {"localisation": 1}
    objects: list[Object] = [(0, 0, A, False), (0, 0, B, False), (0, 1, share(0.4), False)]
    both = evaluated(objects, [(0, 0, share(0.4), 0.8)])
    assert counts(both) == {"localisation": 1, "missed": 2}
    assert both.cost["localisation"] == pytest.approx(51 / 101 / 2)  # one of its own class is found, none of the other


def test_another_class_comes_before_a_duplicate() -> None:
    errors = evaluated([(0, 0, A, False), (0, 1, share(0.9), False)], [(0, 0, A, 0.9), (0, 0, share(0.95), 0.8)])
    assert counts(errors) == {"classification": 1}
    # Fixed, it finds the object of the other class, which nothing found.
    assert errors.ap50 == pytest.approx(0.5)
    assert errors.cost["classification"] == pytest.approx(0.5)
    assert errors.cost["missed"] == 0.0


def test_an_object_at_which_an_error_aims_is_not_missed() -> None:
    objects: list[Object] = [(0, 0, A, False), (0, 0, B, False)]
    assert counts(evaluated(objects, [])) == {"missed": 2}
    assert counts(evaluated(objects, [(0, 0, share(0.3), 0.5)])) == {"localisation": 1, "missed": 1}
    assert counts(evaluated(objects, [(0, 1, B, 0.5)])) == {"classification": 1, "missed": 1}
    assert counts(evaluated(objects, [(0, 1, share(0.3), 0.5)])) == {"both": 1, "missed": 2}
    assert counts(evaluated(objects, [(0, 0, B, 0.5)])) == {"missed": 1}


def test_of_several_errors_about_an_object_the_surest_is_fixed_and_the_others_are_taken_away() -> None:
    two: list[Object] = [(0, 0, A, False), (0, 0, B, False)]
    errors = evaluated(two, [(0, 0, share(0.2), 0.9), (0, 0, share(0.4), 0.8), (0, 0, B, 0.7)])
    assert counts(errors) == {"localisation": 2}
    assert errors.ap50 == pytest.approx(51 / 3 / 101)
    # Were the second left, precision would be 2/3 at the end, and were it fixed instead of the first, 1/2 at first.
    assert errors.cost["localisation"] == pytest.approx(1 - errors.ap50)
    assert errors.cost["missed"] == 0.0
    renamed = evaluated(two, [(0, 1, A, 0.9), (0, 1, A, 0.8), (0, 0, B, 0.7)])
    assert counts(renamed) == {"classification": 2}
    assert renamed.ap50 == pytest.approx(51 / 101)
    assert renamed.cost["classification"] == pytest.approx(50 / 101)


def test_an_error_about_an_object_that_is_found_is_taken_away() -> None:
    errors = evaluated([(0, 0, A, False)], [(0, 0, share(0.3), 0.9), (0, 0, A, 0.5)])
    assert counts(errors) == {"localisation": 1}
    assert errors.ap50 == pytest.approx(0.5)
    assert errors.cost["localisation"] == pytest.approx(0.5)


def test_missed_objects_are_not_asked_for() -> None:
    objects: list[Object] = [(0, 0, A, False), (0, 0, B, False), (1, 0, A, False), (0, 1, B, False)]
    errors = evaluated(objects, [(0, 0, A, 0.9)])
    assert errors.count["missed"] == 3
    found = 34 / 101  # recall 1/3 is reached by 0, 0.01, ..., 0.33
    assert errors.ap50 == pytest.approx((found + 0) / 2)
    # One of one is found then, and nothing is left to find of the other class.
    assert errors.cost["missed"] == pytest.approx(1 - errors.ap50)


def test_crowds_are_neither_found_nor_missed_nor_aimed_at() -> None:
    objects: list[Object] = [(0, 0, A, True), (0, 1, B, False)]
    errors = evaluated(objects, [(0, 0, A, 0.9), (0, 1, A, 0.8), (0, 0, [0, 0, 100, 300], 0.7), (0, 1, B, 0.6)])
    # On the crowd of its own class; on that of another; too little of it within the crowd; right.
    assert counts(errors) == {"background": 2}
    assert errors.ap50 == pytest.approx(0.5)
    assert errors.cost == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"background": 0.5})


def test_no_detections_and_no_objects() -> None:
    nothing = evaluated([(0, 0, A, False), (1, 1, B, False), (1, 1, B, True)], [])
    assert counts(nothing) == {"missed": 2}
    assert nothing.ap50 == 0.0
    assert nothing.cost == dict.fromkeys(KINDS, 0.0) | {"missed": 1.0}
    empty = evaluated([], [(0, 0, A, 0.9)])
    assert counts(empty) == {"background": 1}
    assert math.isnan(empty.ap50)
    assert all(math.isnan(cost) for cost in empty.cost.values())


def kinds_by_loops(
    ground: Ground, found: Columns, outcome: dict[int, int], hit: dict[int, int]
) -> dict[str, dict[int, int]]:
    """The rows of wrong detections by kind, and the object that each is about (-1: none); of `missed`, the objects."""
    real = np.flatnonzero(~ground.crowd).tolist()
    used = {hit[row] for row, result in outcome.items() if result == TRUE}
    kinds: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
    for row in (row for row, result in outcome.items() if result == FALSE):
        near = [thing for thing in real if ground.images[ground.image[thing]] == found.images[row]]
        overlap = {thing: naive_iou(found.boxes[row].tolist(), ground.box[thing].tolist()) for thing in near}
        same = {t: x for t, x in overlap.items() if ground.categories[ground.label[t]] == found.categories[row]}
        other = {t: x for t, x in overlap.items() if t not in same}
        if 0.1 <= max(same.values(), default=0) <= 0.5:
            kinds["localisation"][row] = max(same, key=lambda thing: same[thing])
        elif max(other.values(), default=0) >= 0.5:
            kinds["classification"][row] = max(other, key=lambda thing: other[thing])
        elif any(x >= 0.5 and thing in used for thing, x in same.items()):
            kinds["duplicate"][row] = -1
        elif max(overlap.values(), default=0) <= 0.1:
            kinds["background"][row] = -1
        else:
            kinds["both"][row] = -1
    aimed = {*kinds["localisation"].values(), *kinds["classification"].values()}
    kinds["missed"] = {thing: thing for thing in real if thing not in used and thing not in aimed}
    return kinds


def fixed(ground: Ground, found: Columns, about: dict[int, int], used: set[int]) -> Columns:
    """Detections in which these rows really have the class and box of what they are about, or are left out."""
    categories, boxes = found.categories.copy(), found.boxes.copy()
    served, removed = set(used), []
    for row in sorted(about, key=lambda row: -found.scores[row]):
        if (thing := about[row]) < 0 or thing in served:
            removed.append(row)
        else:
            served.add(thing)
            categories[row], boxes[row] = ground.categories[ground.label[thing]], ground.box[thing]
    kept = np.setdiff1d(np.arange(len(boxes)), removed)
    return Columns(found.images[kept], categories[kept], boxes[kept], found.scores[kept])


def ap50(ground: Ground, found: Columns, classes: np.ndarray) -> float:
    """pycocotools' AP50 over these classes, 1 for one of which nothing is left to find."""
    by_class = pycocotools_metrics(ground, found)[0][:, 1]
    return float(np.mean(np.where(np.isnan(by_class), 1.0, by_class)[classes]))


@pytest.mark.parametrize("seed", range(1, 6))
def test_kinds_and_costs_are_those_of_loops_and_of_pycocotools_on_fixed_detections(seed: int) -> None:
    ground, found = oddities(seed, images=14, many=60)
    found = distinct(found, seed)
    matches = match(ground, found)
    errors = breakdown(ground, found, matches)
    places = [(one, place) for one in matches for place in range(len(one.row))]
    outcome = {int(one.row[place]): int(one.outcome[0, 0, place]) for one, place in places}
    hit = {int(one.row[place]): int(one.found[place]) for one, place in places}
    kinds = kinds_by_loops(ground, found, outcome, hit)
    assert errors.count == {kind: len(about) for kind, about in kinds.items()}
    assert all(errors.count.values())

    base = metrics_of(matches, np.ones((1, len(ground.images)))).overall[0, 1]
    asked = np.unique(ground.label[~ground.crowd])
    assert errors.ap50 == pytest.approx(base, abs=1e-12)
    assert errors.ap50 == pytest.approx(ap50(ground, found, asked), abs=1e-9)
    used = {hit[row] for row, result in outcome.items() if result == TRUE}
    for kind in KINDS[:-1]:
        rise = ap50(ground, fixed(ground, found, kinds[kind], used), asked) - base
        assert errors.cost[kind] == pytest.approx(rise, abs=1e-9)
        assert errors.cost[kind] >= -1e-12
    kept = np.setdiff1d(np.arange(len(ground.label)), list(kinds["missed"]))
    fewer = replace(
        ground, image=ground.image[kept], label=ground.label[kept], box=ground.box[kept],
        area=ground.area[kept], crowd=ground.crowd[kept],
    )  # fmt: skip
    assert errors.cost["missed"] == pytest.approx(ap50(fewer, found, asked) - base, abs=1e-9)
    assert max(errors.cost.values()) > 0.01
