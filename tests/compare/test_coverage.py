"""Do intervals hold what they state? Simulated experiments, again and again, on images and seeds of a known population.

The population's images are matched once; an experiment draws some of them, and seeds, and is evaluated as a report
does. What its interval should contain is the difference between the mean metrics of all seeds on all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import simulated
from coco_reference import Floats

from detr_container.compare.intervals import LEVEL, Interval, Sample, of_difference, of_metric, resamples
from detr_container.compare.matching import ClassMatches, match
from detr_container.compare.precision import metrics_of

pytestmark = pytest.mark.slow
CLASSES, PER_IMAGE, IMAGES, RESAMPLES = 2, 10, 100, 120


@dataclass(frozen=True)
class Population:
    """runs: the matches of each seed on all images; truth: their mean AP."""

    runs: list[list[ClassMatches]]
    truth: float

    @classmethod
    def of(cls, world: simulated.Scene, skills: Floats, seed: int) -> Population:
        found = [simulated.detect(world, skill, seed + i, PER_IMAGE) for i, skill in enumerate(skills)]
        runs = [match(world.ground, one) for one in found]
        every = np.ones((1, len(world.ground.images)))
        return cls(runs, float(np.mean([metrics_of(run, every).overall[0, 0] for run in runs])))

    def draw(self, rng: np.random.Generator, seeds: int, images: list[int], weights: Floats, again: bool) -> Sample:
        """An experiment with some of the seeds on some of the images. again: whether a seed may be drawn twice."""
        chosen = rng.choice(len(self.runs), seeds, replace=again)
        rows = [metrics_of([_only(one, images) for one in self.runs[i]], weights).overall[:, 0] for i in chosen]
        evaluated = np.stack(rows)
        return Sample(evaluated[:, 0], evaluated[:, 1:], len(images))


def _only(one: ClassMatches, images: list[int]) -> ClassMatches:
    """The matches in these images (rising), which are counted anew from 0."""
    kept, objects = np.isin(one.image, images), np.isin(one.object_image, images)
    return replace(
        one,
        image=np.searchsorted(images, one.image[kept]),
        score=one.score[kept],
        outcome=one.outcome[:, :, kept],
        object_image=np.searchsorted(images, one.object_image[objects]),
        counted=one.counted[:, objects],
    )


def experiments(
    a: Population, b: Population, total: int, seeds: int, trials: int, again: bool = True
) -> list[tuple[Sample, Sample]]:
    pairs = []
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        images = np.sort(rng.choice(total, IMAGES, replace=False)).tolist()
        weights = np.concatenate([np.ones((1, IMAGES)), resamples(IMAGES, RESAMPLES, trial)])
        drawn = [side.draw(rng, seeds, images, weights, again) for side in (a, b)]
        pairs.append((drawn[0], drawn[1]))
    return pairs


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


def widths_over_spread(intervals: list[Interval]) -> float:
    """The stated standard error over how much the metrics really vary from one experiment to the next."""
    stated = math.sqrt(np.mean([one.error**2 for one in intervals]))
    return stated / float(np.std([one.value for one in intervals], ddof=1))


def tolerance(trials: int) -> float:
    """Three standard deviations of a share of so many trials."""
    return 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def test_intervals_over_images_cover_at_their_rate() -> None:
    """One seed a side, and no more to a seed than the noise of single detections."""
    total, trials = 4000, 150
    world = simulated.scene(total, CLASSES, 0, objects=4)
    a, b = (Population.of(world, np.array([skill]), 10 * place) for place, skill in enumerate((0.6, 0.2)))
    pairs = experiments(a, b, total, 1, trials)
    differences = [of_difference(one, other) for one, other in pairs]
    truth = a.truth - b.truth
    assert not any(one.seeds for one in differences)
    assert abs(coverage(differences, truth) - LEVEL) <= tolerance(trials)
    assert 0.8 < widths_over_spread(differences) < 1.25
    of_one = [of_metric(one) for one, _ in pairs]
    assert abs(coverage(of_one, a.truth) - LEVEL) <= tolerance(trials)


def test_intervals_over_seeds_cover_at_their_rate_and_those_that_ignore_seeds_do_not() -> None:
    """Three seeds a side, of which each draws its skill."""
    total, trials, spread = 1000, 100, 0.4
    world = simulated.scene(total, CLASSES, 0, objects=4)
    rng = np.random.default_rng(0)
    a, b = (Population.of(world, rng.normal(skill, spread, 8), 100 * place) for place, skill in enumerate((0.6, 0.2)))
    pairs = experiments(a, b, total, 3, trials)
    differences = [of_difference(one, other) for one, other in pairs]
    truth = a.truth - b.truth
    assert all(one.seeds for one in differences)
    assert coverage(differences, truth) >= LEVEL - tolerance(trials)
    assert 0.8 < widths_over_spread(differences) < 1.35

    def careless(sample: Sample) -> Sample:
        return Sample(sample.plain.mean(keepdims=True), sample.resampled.mean(axis=0, keepdims=True), sample.images)

    ignorant = [of_difference(careless(one), careless(other)) for one, other in pairs]
    assert [one.value for one in ignorant] == pytest.approx([one.value for one in differences])
    assert coverage(ignorant, truth) < 0.75


def test_intervals_of_two_seeds_cover_where_one_side_varies_more() -> None:
    """Each run's skill is drawn, eight times as widely on one side; two seeds of each are compared."""
    total, trials, count = 400, 100, 24
    world = simulated.scene(total, CLASSES, 0, objects=4)
    rng = np.random.default_rng(0)
    a, b = (
        Population.of(world, rng.normal(skill, spread, count), 100 * place)
        for place, (skill, spread) in enumerate(((0.6, 0.8), (0.2, 0.1)))
    )
    # Of so few runs one would be drawn twice in one of 24 experiments, from which seeds seem to do nothing.
    pairs = experiments(a, b, total, 2, trials, again=False)
    differences, truth = [of_difference(one, other) for one, other in pairs], a.truth - b.truth
    assert np.std([one.mean for one, _ in pairs]) > 2 * np.std([other.mean for _, other in pairs])
    assert coverage(differences, truth) >= LEVEL - tolerance(trials)
    assert coverage([of_metric(one) for one, _ in pairs], a.truth) >= LEVEL - tolerance(trials)
