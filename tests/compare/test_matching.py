"""Which detection finds which object: COCO's rules, against a literal implementation of them and pycocotools' IoU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulated
from coco_reference import (
    Detection,
    Object,
    columns_of,
    ground_of,
    naive_iou,
    naive_mask_iou,
    oddities,
    tiny_detections,
    tiny_objects,
    with_masks,
)
from hypothesis import given, settings
from numpy.typing import NDArray
from pycocotools import mask

from detr_container.compare.matching import (
    AREAS,
    FALSE,
    LIMIT,
    THRESHOLDS,
    TRUE,
    UNCOUNTED,
    Ground,
    iou,
    match,
    of_boxes,
    of_masks,
)
from detr_container.datasets.annotations import parse_annotations
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.scoring import truth_of

ALL = (0, 0)
"""The place in `outcome` of all sizes and IoU 0.5."""


def surest_first(found: Columns, rows: NDArray[np.int64]) -> list[int]:
    return sorted(rows.tolist(), key=lambda row: -found.scores[row])


class Definitions:
    """Overlaps and sizes by definition, of boxes or of masks."""

    def __init__(self, ground: Ground, found: Columns, masks: bool) -> None:
        self.ground, self.found, self.masks = ground, found, masks
        if masks:
            assert found.masks is not None
            assert ground.masks is not None
            self.mine, self.theirs = (np.moveaxis(mask.decode(list(x)), -1, 0) for x in (found.masks, ground.masks))

    def overlap(self, row: int, thing: int) -> float:
        crowd = bool(self.ground.crowd[thing])
        if self.masks:
            return naive_mask_iou(self.mine[row], self.theirs[thing], crowd)
        return naive_iou(self.found.boxes[row].tolist(), self.ground.box[thing].tolist(), crowd)

    def size(self, row: int) -> float:
        return float(self.mine[row].sum()) if self.masks else float(self.found.boxes[row, 2] * self.found.boxes[row, 3])


def outcomes_by_rules(
    ground: Ground, found: Columns, masks: bool = False
) -> tuple[dict[tuple[int, int, int], int], dict[int, int]]:
    """The outcome of (row, area, threshold) and the object that a row found at IoU 0.5, all sizes.

    In an image the detections of a class choose in turn, the surest first. Each takes the object of its class that it
    overlaps most, if that is enough; an object that is not asked for (a crowd, or of another size) only when there is
    no other. An object can be taken once, a crowd for ever.
    """
    outcomes, hits = {}, {}
    defined = Definitions(ground, found, masks)
    for image, label in np.ndindex(len(ground.images), len(ground.names)):
        of_image = (found.images == ground.images[image]) & (found.categories == ground.categories[label])
        rows = surest_first(found, np.flatnonzero(of_image))[:100]
        objects = np.flatnonzero((ground.image == image) & (ground.label == label)).tolist()
        overlaps = {(row, thing): defined.overlap(row, thing) for row in rows for thing in objects}
        sizes = {row: defined.size(row) for row in rows}
        for area, (low, high) in enumerate(AREAS.values()):
            counted = {thing for thing in objects if not ground.crowd[thing] and low <= ground.area[thing] <= high}
            for step, threshold in enumerate(np.linspace(0.5, 0.95, 10)):
                taken: set[int] = set()
                for row in rows:
                    near = [thing for thing in objects if overlaps[row, thing] >= threshold and thing not in taken]
                    pool = [thing for thing in near if thing in counted] or near
                    if pool:
                        best = max(reversed(pool), key=lambda thing: overlaps[row, thing])  # of equal ones, the last
                        outcomes[row, area, step] = TRUE if best in counted else UNCOUNTED
                        if not ground.crowd[best]:
                            taken.add(best)
                        if (area, step) == ALL:
                            hits[row] = best
                    else:
                        fits = low <= sizes[row] <= high
                        outcomes[row, area, step] = FALSE if fits else UNCOUNTED
    return outcomes, hits


def outcomes_of_match(
    ground: Ground, found: Columns, masks: bool = False
) -> tuple[dict[tuple[int, int, int], int], dict[int, int]]:
    """The same from `match`."""
    outcomes, hits = {}, {}
    for one in match(ground, found, of_masks if masks else of_boxes):
        for place, row in enumerate(one.row.tolist()):
            for area, step in np.ndindex(len(AREAS), len(THRESHOLDS)):
                assert (row, area, step) not in outcomes
                outcomes[row, area, step] = int(one.outcome[area, step, place])
            if one.found[place] >= 0:
                hits[row] = int(one.found[place])
    return outcomes, hits


@pytest.mark.parametrize("seed", range(6))
def test_every_outcome_is_that_of_the_literal_rules(seed: int) -> None:
    ground, found = oddities(seed)
    outcomes, hits = outcomes_of_match(ground, found)
    assert (outcomes, hits) == outcomes_by_rules(ground, found)
    assert {TRUE, FALSE, UNCOUNTED} == set(outcomes.values())
    assert any(ground.crowd[thing] for thing in hits.values())


@pytest.mark.parametrize("seed", range(3))
def test_every_outcome_of_masks_is_that_of_the_literal_rules(seed: int) -> None:
    ground, found = with_masks(*oddities(seed, images=6, many=104), seed)
    assert found.masks is not None
    assert (found.masks.areas() == 0).any()
    outcomes, hits = outcomes_of_match(ground, found, masks=True)
    assert (outcomes, hits) == outcomes_by_rules(ground, found, masks=True)
    assert {TRUE, FALSE, UNCOUNTED} == set(outcomes.values())
    assert any(ground.crowd[thing] for thing in hits.values())
    # Of boxes they are others.
    assert (outcomes, hits) != outcomes_of_match(ground, found)


def test_masks_are_asked_for_only_where_both_have_them() -> None:
    ground, found = with_masks(*oddities(0), 0)
    with pytest.raises(ValueError, match=r"the annotation file has no masks: only their boxes can be compared"):
        match(replace(ground, masks=None), found, of_masks)
    with pytest.raises(ValueError, match=r"the detections have no masks"):
        match(ground, found._replace(masks=None), of_masks)


@settings(max_examples=150)
@given(objects=tiny_objects(), detections=tiny_detections())
def test_tiny_cases_with_equal_overlaps_equal_scores_and_areas_at_a_limit(
    objects: list[Object], detections: list[Detection]
) -> None:
    ground = ground_of(objects, 2, 2)
    found = columns_of(ground, detections)
    assert outcomes_of_match(ground, found) == outcomes_by_rules(ground, found)


def test_of_objects_that_overlap_equally_the_last_is_found() -> None:
    box = [10.0, 10.0, 50.0, 50.0]
    ground = ground_of([(0, 0, box, False), (0, 0, box, False), (0, 0, [300, 300, 9, 9], False)])
    (one,) = match(ground, columns_of(ground, [(0, 0, box, 0.9), (0, 0, box, 0.8), (0, 0, box, 0.7)]))
    assert one.found.tolist() == [1, 0, -1]
    assert one.outcome[ALL].tolist() == [TRUE, TRUE, FALSE]


def test_a_crowd_takes_what_is_left_and_takes_it_for_ever() -> None:
    ground = ground_of([(0, 0, [0, 0, 200, 200], True), (0, 0, [0, 0, 50, 50], False)])
    exact, within = [0.0, 0.0, 50.0, 50.0], [100.0, 100.0, 20.0, 20.0]
    detections = [(0, 0, exact, 0.9), (0, 0, exact, 0.8), (0, 0, within, 0.7), (0, 0, within, 0.6)]
    (one,) = match(ground, columns_of(ground, detections))
    assert one.outcome[ALL].tolist() == [TRUE, UNCOUNTED, UNCOUNTED, UNCOUNTED]
    assert one.found.tolist() == [1, 0, 0, 0]
    assert one.counted[0].tolist() == [False, True]
    # An object of which it covers little more than half comes before a crowd that it is wholly within.
    (one,) = match(ground, columns_of(ground, [(0, 0, [0.0, 0.0, 50.0, 27.0], 0.9)]))
    assert (one.found.tolist(), one.outcome[ALL].tolist()) == ([1], [TRUE])


def test_iou_is_that_of_pycocotools() -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    boxes, objects = (rng.integers(0, 12, (count, 4)).astype(float) for count in (80, 60))
    crowd = rng.random(60) < 0.3
    ours = iou(boxes, objects, crowd)
    np.testing.assert_array_equal(ours, mask.iou(boxes, objects, crowd.astype(np.uint8)))
    assert ours.max() == 1.0
    assert (boxes[:, 2:] == 0).any()
    assert (ours == 0).any()


def test_detections_come_surest_first_then_by_image_and_know_their_row() -> None:
    ground, found = oddities(0)
    matches = match(ground, found)
    for label, one in enumerate(matches):
        np.testing.assert_array_equal(found.scores[one.row], one.score)
        np.testing.assert_array_equal(found.images[one.row], ground.images[one.image])
        assert (found.categories[one.row] == ground.categories[label]).all()
        order = list(zip((-one.score).tolist(), one.image.tolist(), one.row.tolist(), strict=True))
        assert order == sorted(order)
        things = np.flatnonzero(ground.label == label)
        things = things[np.argsort(ground.image[things], kind="stable")]
        np.testing.assert_array_equal(one.object_image, ground.image[things])
        for area, (low, high) in enumerate(AREAS.values()):
            fits = (ground.area[things] >= low) & (ground.area[things] <= high)
            np.testing.assert_array_equal(one.counted[area], fits & ~ground.crowd[things])
    assert len(matches[1].row) == 0 < len(matches[1].object_image)
    assert len(matches[-1].object_image) == 0 < len(matches[-1].row)


def test_only_the_hundred_surest_of_a_class_in_an_image_are_kept() -> None:
    ground, found = oddities(1)
    of_first = found.categories == ground.categories[0]
    where = np.bincount(found.images[of_first]).argmax()
    rows = np.flatnonzero(of_first & (found.images == where))
    assert len(rows) > LIMIT == 100
    one = match(ground, found)[0]
    kept = one.row[ground.images[one.image] == where]
    assert sorted(kept.tolist()) == sorted(surest_first(found, rows)[:100])


def test_ground_is_what_the_file_holds() -> None:
    ground = simulated.scene(9, 4, 3).ground
    content = simulated.annotation_file(simulated.Scene(ground, np.zeros(9)))
    again = Ground.of(truth_of(parse_annotations(content, Path(), Path())[0]))
    assert again.names == ground.names
    for name in ("images", "categories", "image", "label", "box", "area", "crowd"):
        np.testing.assert_array_equal(getattr(again, name), getattr(ground, name))
    bare = {"images": content["images"][:2], "categories": [{"id": 4, "name": "a"}], "annotations": []}
    empty = Ground.of(truth_of(parse_annotations(bare, Path(), Path())[0]))
    assert empty.box.shape == (0, 4)
    assert [len(one.row) for one in match(empty, columns_of(empty, [(1, 0, [0, 0, 4, 4], 0.5)]))] == [1]
