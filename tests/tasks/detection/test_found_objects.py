"""Which detections of several models are one object."""

from __future__ import annotations

import numpy as np
import pytest
from matched import most, naive_iou, some, weights_of

from detr_container.tasks.detection.found_objects import Found, match_across


@pytest.mark.parametrize("seed", range(12))
def test_matching_is_the_best_of_all(seed: int) -> None:
    """On crowded random boxes, where choosing the best pair first is not the best."""
    random = np.random.default_rng(seed)

    def model(count: int) -> list[Found]:
        corners = random.uniform(0, 12, (count, 2))
        sizes = random.uniform(20, 30, (count, 2))
        names = random.choice(["ring", "Ring", "star"], count)
        scores = sorted(random.uniform(0, 1, count), reverse=True)
        return [some(str(n), s, [*c, *z]) for n, s, c, z in zip(names, scores, corners, sizes, strict=True)]

    ours, theirs = model(5), model(6)
    objects = match_across([ours, theirs])
    pairs = [(a, b) for a, b in objects if a and b]
    table = weights_of(ours, theirs)
    reached = sum(naive_iou(a.record["bbox"], b.record["bbox"]) for a, b in pairs)
    assert pairs
    assert reached == pytest.approx(most(table), abs=1e-5)
    assert all(weights_of([a], [b])[0][0] >= 0.5 for a, b in pairs)
    for place, model_found in enumerate((ours, theirs)):
        listed = [thing[place] for thing in objects if thing[place] is not None]
        assert sorted(map(id, listed)) == sorted(map(id, model_found))
    best = [max(one.record["score"] for one in thing if one) for thing in objects]
    assert best == sorted(best, reverse=True)


def test_matching_of_three_and_of_none() -> None:
    box, moved, far = [10.0, 10, 20, 20], [14.0, 10, 20, 20], [60.0, 60, 20, 20]
    first, second = [some("ring", 0.6, box)], [some("star", 0.9, box), some("ring", 0.3, far)]
    third = [some("RING", 0.8, moved), some("star", 0.5, box), some("ring", 0.2, [60.0, 60, 0, 0])]
    objects = match_across([first, second, third])
    assert objects == [
        [None, second[0], third[1]],  # 0.9
        [first[0], None, third[0]],  # 0.8
        [None, second[1], None],
        [None, None, third[2]],  # without area, so it overlaps nothing
    ]
    # The first box decides: one that drifts from model to model does not take the object along.
    drifting = [[some("ring", 0.9 - place / 10, [10.0 + 4 * place, 10, 20, 20])] for place in range(3)]
    assert match_across(drifting) == [[drifting[0][0], drifting[1][0], None], [None, None, drifting[2][0]]]
    assert match_across([[], []]) == []
    assert match_across([[], first]) == [[None, first[0]]]
