"""Average precision from matches: COCO's own metrics, plain, and of every resample as if its images were repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import coco_reference as reference
import numpy as np
import pytest
import simulated
from coco_reference import (
    Detection,
    Floats,
    Object,
    columns_of,
    ground_of,
    naive_precision,
    oddities,
    pycocotools_metrics,
    tiny_detections,
    tiny_objects,
    with_masks,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_container.compare import precision
from detr_container.compare.intervals import resamples
from detr_container.compare.matching import UNCOUNTED, Ground, match, of_boxes, of_masks
from detr_container.compare.precision import METRICS, Metrics, interpolated, metrics_of, precision_at_recall
from detr_container.tasks.detection.coco_results import columns_of as columns_of_records
from detr_container.tasks.detection.coco_results import read_results
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.scores import Scores
from detr_container.tasks.detection.scoring import read_truth, score, usable

PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501)
CLOSE = 1e-9


def plain(ground: Ground, found: Columns, masks: bool = False) -> Metrics:
    return metrics_of(match(ground, found, of_masks if masks else of_boxes), np.ones((1, len(ground.images))))


def assert_as_coco(ours: Metrics, by_class: Floats, overall: Floats, place: int = 0) -> None:
    np.testing.assert_allclose(ours.by_class[place], by_class, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(ours.overall[place], overall, rtol=0, atol=CLOSE)


def assert_as_scored(ours: Metrics, scores: Scores) -> None:
    """None in scores is NaN in ours."""
    overall = [getattr(scores, name) for name in METRICS]
    by_class = [[row.ap, row.ap50] for row in scores.per_class]
    np.testing.assert_allclose(ours.overall[0], np.array(overall, dtype=float), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(ours.by_class[0, :, :2], np.array(by_class, dtype=float), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("skill", [-1.0, 1.5])
@pytest.mark.parametrize(("classes", "objects", "crowds"), [(6, 7.0, 0.05), (1, 3.0, 0.3), (30, 1.0, 0.0)])
def test_simulated_detectors_score_as_in_the_evaluator_of_a_run(
    tmp_path: Path, skill: float, classes: int, objects: float, crowds: float
) -> None:
    world = simulated.scene(40, classes, 1, objects, crowds)
    found = simulated.detections(simulated.detect(world, skill, 2, per_image=25))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(simulated.annotation_file(world)))
    truth = read_truth(path)
    scores = score(path, found, "pycocotools")
    assert_as_scored(plain(Ground.of(truth), usable(found.columns(), truth, path)), scores)
    assert 0 < (scores.ap or 0) < 0.9


@pytest.mark.shared
def test_the_published_metrics(shared_data: Path) -> None:
    fixture = shared_data / "cocoeval_fixture"
    path, results = fixture / "instances_val2014_100.json", fixture / "instances_val2014_fakebbox100_results.json"
    truth = read_truth(path)
    ground, found = Ground.of(truth), usable(columns_of_records(read_results(results)), truth, path)
    ours = plain(ground, found)
    assert ours.overall[0] == pytest.approx(PUBLISHED, abs=5.01e-4)
    assert_as_scored(ours, score(path, results, "pycocotools"))
    assert_as_coco(ours, *pycocotools_metrics(ground, found))


@pytest.mark.parametrize("seed", range(8))
def test_every_class_and_size_scores_as_in_coco_whatever_is_odd(seed: int) -> None:
    ground, found = oddities(seed)
    by_class, overall = pycocotools_metrics(ground, found)
    assert_as_coco(plain(ground, found), by_class, overall)
    assert np.isnan(by_class[-1]).all()
    assert (by_class[1, :3] == 0).all()
    assert 0 < overall[0] < 0.9


@pytest.mark.parametrize("seed", range(8))
def test_masks_of_every_class_and_size_score_as_in_coco_whatever_is_odd(seed: int) -> None:
    ground, found = with_masks(*oddities(seed), seed)
    by_class, overall = pycocotools_metrics(ground, found, masks=True)
    assert_as_coco(plain(ground, found, masks=True), by_class, overall)
    assert 0 < overall[0] < 0.9
    assert not np.allclose(overall, plain(ground, found).overall[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("skill", [-1.0, 1.5])
def test_masks_score_as_in_the_evaluator_of_a_run(tmp_path: Path, skill: float) -> None:
    world = simulated.with_masks(simulated.scene(30, 6, 1, crowds=0.05), 3)
    columns = simulated.detect(world, skill, 2, per_image=15)
    found = simulated.detections(columns._replace(masks=simulated.outlines(columns.boxes, 4)))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(simulated.annotation_file(world)))
    truth = read_truth(path, masks=True)
    ours = plain(Ground.of(truth), usable(found.columns(), truth, path), masks=True)
    scores = score(path, found, "pycocotools").masks
    assert scores is not None
    overall = [getattr(scores, name) for name in METRICS]
    by_class = [[row.ap, row.ap50] for row in scores.per_class]
    np.testing.assert_allclose(ours.overall[0], np.array(overall, dtype=float), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(ours.by_class[0, :, :2], np.array(by_class, dtype=float), rtol=0, atol=CLOSE)
    assert 0 < (scores.ap or 0) < 0.9


def test_no_detections_are_zeros_and_no_objects_are_nothing() -> None:
    ground, _ = oddities(0)
    nothing = columns_of(ground, [])
    by_class, overall = pycocotools_metrics(ground, nothing)
    assert_as_coco(plain(ground, nothing), by_class, overall)
    assert overall[0] == 0.0
    empty = ground_of([], 3, 2)
    ours = plain(empty, columns_of(empty, [(0, 0, [0, 0, 5, 5], 0.9)]))
    assert np.isnan(ours.by_class).all()
    assert np.isnan(ours.overall).all()
    assert np.isnan(metrics_of([], np.ones((2, 3))).overall).all()


@settings(max_examples=100)
@given(objects=tiny_objects(), detections=tiny_detections())
def test_tiny_data_sets_score_as_in_coco(objects: list[Object], detections: list[Detection]) -> None:
    ground = ground_of(objects, 2, 2)
    found = columns_of(ground, detections)
    assert_as_coco(plain(ground, found), *pycocotools_metrics(ground, found))


def without_ties(found: Columns, seed: int) -> Columns:
    return reference.distinct(found, seed)


def in_two_decimals(found: Columns, seed: int) -> Columns:
    return found._replace(scores=np.random.default_rng(seed).random(len(found.scores)).round(2))


def with_few_scores(found: Columns, seed: int) -> Columns:
    return found._replace(scores=np.random.default_rng(seed).integers(0, 3, len(found.scores)) / 2)


def all_equal(found: Columns, seed: int) -> Columns:
    return found._replace(scores=np.full(len(found.scores), 0.5))


@pytest.mark.parametrize("scored", [without_ties, in_two_decimals, with_few_scores, all_equal])
@pytest.mark.parametrize("seed", range(4))
def test_resamples_score_as_data_sets_in_which_images_are_repeated(
    seed: int, scored: Callable[[Columns, int], Columns]
) -> None:
    ground, found = oddities(seed)
    found = scored(found, seed)
    times = resamples(len(ground.images), 6, seed).astype(int)
    rare = ground.image[ground.label == 2]
    times[0, rare] = 0  # so that a class vanishes
    times[1] = 0
    times[1, 1] = 3  # an image without objects, again and again
    times[2] = 1
    times[2, 2] = 40
    ours = metrics_of(match(ground, found), times.astype(float))
    for place, row in enumerate(times):
        assert_as_coco(ours, *pycocotools_metrics(*reference.repeated(ground, found, row)), place)
    assert np.isnan(ours.by_class[0, 2]).all()
    assert not np.isnan(ours.overall[0, 0])
    assert np.isnan(ours.overall[1]).all()
    assert len(np.unique(ours.overall[2:, 0])) == 4


@pytest.mark.parametrize("seed", range(2))
def test_resamples_of_masks_score_as_data_sets_in_which_images_are_repeated(seed: int) -> None:
    ground, found = with_masks(*oddities(seed, many=104), seed)
    times = resamples(len(ground.images), 3, seed).astype(int)
    ours = metrics_of(match(ground, found, of_masks), times.astype(float))
    for place, row in enumerate(times):
        assert_as_coco(ours, *pycocotools_metrics(*reference.repeated(ground, found, row), masks=True), place)
    assert len(np.unique(ours.overall[:, 0])) == 3


def test_the_middle_of_a_bootstrap_is_the_plain_metric() -> None:
    ground, found = oddities(3)
    count = len(ground.images)
    weights = np.concatenate([np.ones((1, count)), resamples(count, 5)])
    matches = match(ground, found)
    assert_as_coco(metrics_of(matches, weights), *pycocotools_metrics(ground, found))
    # A data set with every image twice has the same AP as with each once, since both halves have the same scores.
    twice = metrics_of(matches, np.full((1, count), 2.0))
    np.testing.assert_allclose(twice.overall[0], plain(ground, found).overall[0], rtol=0, atol=CLOSE)


def test_neither_chunks_nor_threads_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    ground, found = oddities(5)
    matches, weights = match(ground, found), resamples(len(ground.images), 23)
    whole = metrics_of(matches, weights).by_class
    assert len(np.unique(whole[:, 0, 0])) > 20
    np.testing.assert_array_equal(metrics_of(matches, weights, threads=1).by_class, whole)
    for chunk in (1, 7 * max(len(one.score) for one in matches)):
        monkeypatch.setattr(precision, "_CHUNK", chunk)
        np.testing.assert_array_equal(metrics_of(matches, weights).by_class, whole)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ground, found = oddities(5)
    sizes, few = [], precision._few
    monkeypatch.setattr(precision, "_CHUNK", 1000)
    monkeypatch.setattr(
        precision, "_few", lambda one, weights: sizes.append(len(weights) * len(one.score)) or few(one, weights)
    )
    metrics_of(match(ground, found), resamples(len(ground.images), 50))
    assert 500 < max(sizes) <= 1000


def test_the_mean_over_classes_leaves_out_those_without_objects() -> None:
    by_class = np.full((2, 3, 6), np.nan)
    by_class[0, 0], by_class[0, 2] = 0.25, 0.75
    overall = Metrics(by_class).overall
    assert overall[0].tolist() == [0.5] * 6
    assert np.isnan(overall[1]).all()


def test_precision_against_recall_is_cocos() -> None:
    for seed in range(3):
        ground, found = oddities(seed)
        theirs = reference.pycocotools_precision(ground, found)
        for label, one in enumerate(match(ground, found)):
            for threshold in range(10):
                ours = precision_at_recall(one, threshold)
                if label == len(ground.names) - 1:
                    assert ours is None
                    assert (theirs[threshold, :, label, 0] == -1).all()
                else:
                    np.testing.assert_allclose(ours, theirs[threshold, :, label, 0], rtol=0, atol=CLOSE)


@given(right=st.lists(st.booleans(), max_size=60), more=st.integers(0, 150))
def test_precision_against_recall_is_that_of_its_definition(right: list[bool], more: int) -> None:
    total = max(1, sum(right) + more)
    ours = interpolated(np.array(right, dtype=bool), total)
    np.testing.assert_allclose(ours, naive_precision(right, total), rtol=0, atol=CLOSE)


def test_a_recall_that_is_just_reached_counts() -> None:
    ground = ground_of([(number, 0, [0, 0, 40, 40], False) for number in range(100)], 100)
    # 0.29 x 100 is less than 29 in floating point.
    for hits in range(1, 101):
        found = columns_of(ground, [(number, 0, [0, 0, 40, 40], 0.5) for number in range(hits)])
        recalls = sum(recall <= hits / 100 for recall in np.linspace(0, 1, 101))
        assert plain(ground, found).overall[0, 0] == pytest.approx(recalls / 101, abs=CLOSE)


def test_what_does_not_count_changes_nothing() -> None:
    ground, found = oddities(2)
    matches = match(ground, found)
    weights = resamples(len(ground.images), 4)
    kept = [(one, (one.outcome != UNCOUNTED).any(axis=(0, 1))) for one in matches]
    fewer = [replace(one, image=one.image[k], score=one.score[k], outcome=one.outcome[:, :, k]) for one, k in kept]
    assert any((~k).any() for _, k in kept)
    np.testing.assert_array_equal(metrics_of(matches, weights).by_class, metrics_of(fewer, weights).by_class)
