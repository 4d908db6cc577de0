"""From classification runs to their statistics: every run's predictions on the same resamples of the same images.

Shapes: N images, K classes, B resamples, T classes kept of each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.settings import Experiment

from ..arms import Arm, arms_of
from ..compared import Compared, Rated, Result, level_of, read_each
from ..fairness import differences, refuse_other_data
from ..intervals import Floats, draws
from ..measured import measured
from ..options import RESAMPLES
from ..quality import Calibration, calibration_of
from ..reading import RunRecord, read_runs
from .evaluations import Evaluation, Truth, is_kept, read_evaluation

METRICS = {"top1": "top-1", "top5": "top-5"}
KEPT = 5
"""The k of top-k that says something only where there are more classes."""

WHOLE = (1.0, 0)
"""The share of the training set of who trains on all of it, whatever the seed."""


@dataclass(frozen=True)
class RunResult(Result):
    """One run's predictions, rated; a class without images has NaN.

    right: [N] whether the surest class is true; guess: [N, T] classes, probability: [N, T] theirs, true_probability:
    [N]; log_loss: the mean of -log of that.
    """

    right: NDArray[np.bool_]
    guess: NDArray[np.int64]
    probability: NDArray[np.float32]
    true_probability: NDArray[np.float32]
    log_loss: float
    calibration: Calibration


@dataclass(frozen=True)
class ArmResult(Rated):
    """A classifier with the results of its runs; counts: [K] images of each class."""

    experiment: ClassificationExperiment
    results: tuple[RunResult, ...]
    counts: NDArray[np.int64]
    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    shares: ClassVar[bool] = True

    def images_of(self, label: int) -> int:
        """See `Rated`; its own."""
        return int(self.counts[label])


@dataclass(frozen=True)
class Analysis(Compared[ArmResult]):
    """Everything that a report of classifiers contains; truth: what they were evaluated on."""

    truth: Truth

    @property
    def metrics(self) -> dict[str, str]:
        """Those of METRICS that say something with so many classes."""
        return METRICS if len(self.truth.names) > KEPT else {"top1": METRICS["top1"]}


def analyse(
    folders: Sequence[Path],
    epoch: int | None = None,
    count: int = RESAMPLES,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Analysis:
    """Rate runs on the same images.

    epoch: after which all are evaluated; default: after their last, and if none is finished after the latest that all
    have reached. count: resamples; on_progress: takes runs done, of how many, and the next one. Raises ValueError when
    nothing can be evaluated and when the runs are of different data.
    """
    records = read_runs(folders)
    arms, left_out = arms_of(records)
    _refuse_other_data(records)
    level = epoch or level_of(arms, is_kept)
    evaluated = read_each(arms, level, read_evaluation, left_out)
    truth = _one_truth(evaluated)
    rated = _rated(evaluated, truth, count, on_progress)
    results: dict[Path, RunResult] = {}
    notes: dict[Path, tuple[str, ...]] = {}
    for record in records:
        if record.folder in evaluated:
            result = _result(record, evaluated[record.folder], *rated[record.folder])
            results[record.folder] = result
            notes[record.folder] = (*record.faults, *_oddities(result))
    arm_results = [_arm_result(arm, results, truth.counts()) for arm in arms]
    eval_settings = {folder: one.eval_settings for folder, one in evaluated.items()}
    shares = any(_share(record.experiment) != WHOLE for record in records)
    used = [arm for arm in arm_results if arm.results]
    apart = differences(used, eval_settings, "images", ("val",) if shares else ("train", "val"))
    return Analysis(tuple(records), tuple(arm_results), left_out, notes, tuple(apart), count, level, truth)


def _refuse_other_data(records: Sequence[RunRecord]) -> None:
    """Raise ValueError when runs were trained or evaluated on different data, as far as they noted on which.

    A share of the training set is another one for every seed; that runs train on shares of it is no other data.
    """
    groups: dict[tuple[float, int], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_share(record.experiment), []).append(record)
    for group in groups.values():
        refuse_other_data(group, "the list of files")


def _share(experiment: Experiment | None) -> tuple[float, int]:
    """Which share of the training set a run sees, and the seed that chose it."""
    if not isinstance(experiment, ClassificationExperiment) or experiment.data.fraction == 1:
        return WHOLE
    return experiment.data.fraction, experiment.seed


def _one_truth(evaluated: Mapping[Path, Evaluation]) -> Truth:
    """What all were evaluated on. Raises ValueError when that is not the same."""
    (first, one), *others = evaluated.items()
    for folder, other in others:
        if not one.truth.is_same(other.truth):
            raise ValueError(
                f"these runs were evaluated on different data: {first} on {one.truth.folder}, {folder} on "
                f"{other.truth.folder}, whose lists of images, labels or classes are not the same. Their metrics "
                "cannot be compared: report each group by itself"
            )
    return one.truth


Rates = tuple[Floats, Floats]
"""METRICS [1 + B, 2] and top-1 by class [1 + B, K], of all images first and then of each resample."""


def _rated(
    evaluated: Mapping[Path, Evaluation], truth: Truth, count: int, on_progress: Callable[[int, int, str], None]
) -> dict[Path, Rates]:
    """What all runs come to, of the images as they are and of each resample, one resample after the other."""
    images, classes = len(truth.labels), len(truth.names)
    right = np.stack([np.stack([one.found.top(1), one.found.top(KEPT)]) for one in evaluated.values()])
    flat = right.reshape(-1, images).astype(np.float64)
    overall = np.empty((1 + count, *right.shape[:2]))
    by_class = np.empty((1 + count, len(right), classes))
    # Places of hits by class and run, so that one count makes all.
    hits = [np.flatnonzero(each[0]) for each in right]
    for number, times in enumerate(chain([np.ones(images)], draws(images, count))):
        if number % 100 == 0:
            on_progress(number, 1 + count, "resamples")
        overall[number] = (flat @ times).reshape(right.shape[:2]) / images
        total = np.bincount(truth.labels, times, classes)
        with np.errstate(invalid="ignore"):
            for run, places in enumerate(hits):
                by_class[number, run] = np.bincount(truth.labels[places], times[places], classes) / total
    on_progress(1 + count, 1 + count, "")
    return {folder: (overall[:, run], by_class[:, run]) for run, folder in enumerate(evaluated)}


def _result(record: RunRecord, evaluation: Evaluation, overall: Floats, by_class: Floats) -> RunResult:
    found = evaluation.found
    right = found.top(1)
    # A probability below what float32 holds is not none at all.
    likely = np.maximum(found.true_probability.astype(np.float64), np.finfo(np.float32).tiny)
    return RunResult(
        record,
        evaluation.epoch,
        measured(record),
        overall[0],
        overall[1:],
        by_class[0],
        by_class[1:],
        right,
        found.classes,
        found.probabilities,
        found.true_probability,
        float(-np.log(likely).mean()),
        calibration_of(found.probabilities[:, 0], right),
    )


def _arm_result(arm: Arm, results: Mapping[Path, RunResult], counts: NDArray[np.int64]) -> ArmResult:
    used = tuple(results[run.folder] for run in arm.runs if run.folder in results)
    return ArmResult(arm.label, classification(arm.experiment), arm.runs, used, int(counts.sum()), counts)


def _oddities(result: RunResult) -> list[str]:
    """What a reader should know of a run whose metrics are used nevertheless."""
    oddities = []
    if len(np.unique(result.guess[:, 0])) == 1:
        oddities.append("it takes every image for the same class")
    return [*oddities, *result.drift("its predictions give top-1")]
