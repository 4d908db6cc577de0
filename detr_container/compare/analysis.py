"""From runs to their statistics: every run evaluated on the same resamples of the same images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from detr_container.base.files import sha256
from detr_container.config.detection import DetectionExperiment, detection
from detr_container.datasets.annotations import Annotations, read_annotations
from detr_container.tasks.detection.coco_results import is_kept
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.scoring import Truth, read_truth, usable

from .arms import Arm, arms_of
from .compared import Compared, Rated, Result, level_of, nothing, read_each
from .detectron2.folders import content_of, read_detectors
from .errors import Errors, breakdown
from .evaluations import Evaluation, read_evaluation
from .fairness import differences, refuse_other_data
from .intervals import Floats, resamples
from .matching import Ground, match, of_masks
from .measured import measured
from .options import RESAMPLES
from .precision import METRICS, Metrics, metrics_of, precision_at_recall
from .quality import Calibration, calibration, image_quality
from .reading import RunRecord


@dataclass(frozen=True)
class MaskResult(Result):
    """One run's masks, evaluated: metrics as those of boxes, from the IoU of masks and by their areas."""

    def drift(self, gives: str) -> list[str]:
        """See `Result`."""
        return self._drift(self.record.logged(self.epoch, "mask_ap"), gives)


@dataclass(frozen=True)
class MaskArm(Rated):
    """A detector by its masks: everything that can be asked of an arm by its boxes."""

    metrics: ClassVar[tuple[str, ...]] = METRICS


@dataclass(frozen=True)
class RunResult(Result):
    """One run's detections, evaluated.

    precision: for IoU 0.5 and 0.75 [2, 101], means over classes; quality: [N] AP of each image alone; found: its
    detections; masks: the same metrics of its masks, None where it has none. All but those are of boxes.
    """

    precision: Floats
    quality: Floats
    errors: Errors
    calibration: Calibration
    found: Columns
    masks: MaskResult | None


@dataclass(frozen=True)
class ArmResult(Rated):
    """A detector with the results of its runs."""

    experiment: DetectionExperiment
    results: tuple[RunResult, ...]
    metrics: ClassVar[tuple[str, ...]] = METRICS

    @cached_property
    def masks(self) -> MaskArm | None:
        """The same detector by its masks; None where no run of it has any."""
        found = tuple(one.masks for one in self.results if one.masks is not None)
        return MaskArm(self.label, self.experiment, self.runs, found, self.images) if found else None


@dataclass(frozen=True)
class Analysis(Compared[ArmResult]):
    """Everything that a report of detectors contains; ground, annotations: what they were evaluated on."""

    ground: Ground
    annotations: Path

    @cached_property
    def images(self) -> Annotations:
        """The validation images by name and size; where they lie is not looked for."""
        return read_annotations(self.annotations, self.annotations.parent)

    @cached_property
    def by_masks(self) -> list[MaskArm]:
        """Those arms that have masks, by them."""
        return [arm.masks for arm in self.evaluated if arm.masks is not None]


def analyse(
    folders: Sequence[Path],
    annotations: Path | None = None,
    epoch: int | None = None,
    count: int = RESAMPLES,
    on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Analysis:
    """Evaluate runs on the same data.

    epoch: evaluate all after this epoch; default: after their last, and if none is finished after the latest that all
    have reached. count: resamples; on_progress: takes runs done, of how many, and the next one. Raises ValueError when
    nothing can be evaluated and when the runs are of different data.
    """
    records = read_detectors(folders)
    arms, left_out = arms_of(records)
    refuse_other_data(records)
    level = epoch or level_of(arms, is_kept)
    evaluated = read_each(arms, level, lambda record, at: read_evaluation(record, at, annotations), left_out)
    path = _one_file(list(evaluated.values()))
    truth, why_boxes = _truth(path, any(one.found.masks is not None for one in evaluated.values()))
    ground = Ground.of(truth)
    weights = np.concatenate([np.ones((1, len(ground.images))), resamples(len(ground.images), count)])
    notes: dict[Path, tuple[str, ...]] = {}
    results: dict[Path, RunResult] = {}
    for record in records:
        if record.folder not in evaluated:
            continue
        on_progress(len(results), len(evaluated), str(record.folder))
        try:
            found, remarks = _usable(evaluated[record.folder].by(truth.names), truth, path)
        except ValueError as error:
            left_out[record.folder] = f"its detections after epoch {evaluated[record.folder].epoch}: {error}"
            continue
        result = _result(record, evaluated[record.folder].epoch, ground, found, weights)
        results[record.folder] = result
        notes[record.folder] = (*record.faults, *remarks, *_oddities(result, why_boxes))
    on_progress(len(evaluated), len(evaluated), "")
    if not results:
        raise nothing(left_out)
    arm_results = [_arm_result(arm, results, len(ground.images)) for arm in arms]
    eval_settings = {folder: evaluated[folder].eval_settings for folder in results}
    return Analysis(
        tuple(records),
        tuple(arm_results),
        left_out,
        notes,
        tuple(differences([arm for arm in arm_results if arm.results], eval_settings)),
        count,
        level,
        ground,
        path,
    )


def _truth(path: Path, masks: bool) -> tuple[Truth, str]:
    """The ground truth, with masks where they are asked for and the file has them; and why it has none."""
    if masks:
        try:
            return read_truth(path, masks=True), ""
        except ValueError as error:
            return read_truth(path), " ".join(str(error).split())
    return read_truth(path), ""


def _usable(found: Columns, truth: Truth, path: Path) -> tuple[Columns, list[str]]:
    """Detections that can be matched, and what was left out of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = usable(found, truth, path)
    return kept, [str(one.message) for one in caught]


def _one_file(evaluated: Sequence[Evaluation]) -> Path:
    """The annotation file of all runs; what detectron2 made for itself counts where no run names one.

    Raises ValueError when files of different content are named, and when none is.
    """
    named = dict.fromkeys(one.annotations for one in evaluated if one.annotations is not None)
    made = dict.fromkeys(one.own for one in evaluated if one.own is not None)
    versions: dict[str, Path] = {}
    for path in named or made:
        versions.setdefault(sha256(path) if named else content_of(path), path)
    if not versions:
        raise ValueError(
            "nothing says on which annotations these detections are to be evaluated, since detectron2's folders do "
            "not: name the file with --annotations FILE, or report a run of ours on the same images with them"
        )
    if len(versions) > 1:
        raise ValueError(
            f"these runs were evaluated on different data: {', '.join(map(str, versions.values()))}. "
            "Their metrics cannot be compared: report each group by itself"
        )
    return next(iter(versions.values()))


def _arm_result(arm: Arm, results: Mapping[Path, RunResult], images: int) -> ArmResult:
    used = tuple(results[run.folder] for run in arm.runs if run.folder in results)
    return ArmResult(arm.label, detection(arm.experiment), arm.runs, used, images)


def _result(record: RunRecord, epoch: int, ground: Ground, found: Columns, weights: Floats) -> RunResult:
    matches = match(ground, found)
    rated = metrics_of(matches, weights)
    curves = [[precision_at_recall(one, threshold) for one in matches] for threshold in (0, 5)]
    masks = None
    if ground.masks is not None and found.masks is not None:
        masks = MaskResult(
            record, epoch, measured(record), *_arrays(metrics_of(match(ground, found, of_masks), weights))
        )
    return RunResult(
        record,
        epoch,
        measured(record),
        *_arrays(rated),
        np.stack([_mean_curve([curve for curve in group if curve is not None]) for group in curves]),
        image_quality(matches, len(ground.images)),
        breakdown(ground, found, matches),
        calibration(matches),
        found,
        masks,
    )


def _arrays(rated: Metrics) -> tuple[Floats, Floats, Floats, Floats]:
    """What a `Result` has of metrics whose first weights are 1 for each image: plain, resampled, and both by class."""
    overall = rated.overall
    return overall[0], overall[1:], rated.by_class[0, :, 0], rated.by_class[1:, :, 0]


def _mean_curve(curves: Sequence[NDArray[np.float64]]) -> Floats:
    return np.mean(curves, axis=0) if curves else np.full(101, np.nan)


def _oddities(result: RunResult, why_boxes: str) -> list[str]:
    """What a reader should know of a run whose metrics are used nevertheless. why_boxes: why its masks are not."""
    oddities = []
    if not len(result.found.scores):
        oddities.append("it has detected nothing at all")
    elif not result.plain[0] > 0:
        oddities.append("none of its detections is right at any IoU that counts")
    oddities += result.drift("its detections give AP")
    if result.masks is not None:
        oddities += result.masks.drift("its masks give mask AP")
    elif result.found.masks is not None:
        oddities.append(f"its masks are not evaluated: {why_boxes}")
    elif isinstance(result.record.experiment, DetectionExperiment) and result.record.experiment.masks:
        oddities.append("its detections have no masks, so it is in no mean of mask AP")
    return oddities
