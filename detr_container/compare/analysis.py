"""From runs to what can be said of them: every run judged on the same resamples of the same pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detr_container.base.files import sha256
from detr_container.tasks.detection.coco_results import is_kept
from detr_container.tasks.detection.detections import Columns
from detr_container.tasks.detection.scoring import Truth, read_truth, usable

from .cells import Cell, cells_of
from .errors import Errors, breakdown
from .fairness import Difference, differences, refuse_other_data
from .intervals import Floats, Sample, resamples
from .matching import Ground, match
from .measured import Measured, measured
from .options import RESAMPLES
from .precision import FIGURES, figures, precision_at_recall
from .quality import Calibration, calibration, picture_quality
from .reading import Judged, RunRecord, judge, read_runs

DRIFT = 1e-6
"""By how much the AP that a run logged may differ from that of its detections before something is wrong."""


@dataclass(frozen=True)
class RunResult:
    """One run, judged at one epoch.

    plain: [6] FIGURES, resampled: [B, 6]; by_class: [K] AP, by_class_resampled: [B, K]; precision: for IoU 0.5 and 0.75
    [2, 101], means over classes; quality: [N] AP of each picture alone; found: its detections.
    """

    record: RunRecord
    epoch: int
    plain: Floats
    resampled: Floats
    by_class: Floats
    by_class_resampled: Floats
    precision: Floats
    quality: Floats
    errors: Errors
    calibration: Calibration
    measured: Measured
    found: Columns


@dataclass(frozen=True)
class CellResult:
    """A cell with the results of those of its runs that could be judged."""

    cell: Cell
    results: tuple[RunResult, ...]
    pictures: int

    def sample(self, figure: str) -> Sample:
        """One of FIGURES over its seeds."""
        place = FIGURES.index(figure)
        plain = np.array([result.plain[place] for result in self.results])
        return Sample(plain, np.stack([result.resampled[:, place] for result in self.results]), self.pictures)

    def class_sample(self, label: int) -> Sample:
        """The AP of one class over its seeds."""
        plain = np.array([result.by_class[label] for result in self.results])
        return Sample(plain, np.stack([result.by_class_resampled[:, label] for result in self.results]), self.pictures)


@dataclass(frozen=True)
class Analysis:
    """Everything that a report says.

    cells: all of them, also those of which no run could be judged; unjudged: why a run was left out of means;
    notes: what is odd about runs that were not.
    """

    ground: Ground
    annotations: Path
    records: tuple[RunRecord, ...]
    cells: tuple[CellResult, ...]
    unjudged: dict[Path, str]
    notes: dict[Path, tuple[str, ...]]
    differences: tuple[Difference, ...]
    resamples: int
    level_epoch: int | None

    @property
    def judged(self) -> list[CellResult]:
        """Cells of which at least one run could be judged."""
        return [cell for cell in self.cells if cell.results]


def analyse(
    folders: Sequence[Path],
    annotations: Path | None = None,
    epoch: int | None = None,
    count: int = RESAMPLES,
    tell: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Analysis:
    """Judge runs on the same data.

    epoch: judge all after this epoch; default: after their last, and if none is finished after the latest that all
    have reached. count: resamples; tell: what has been done, of how much. Raises ValueError when nothing can be judged
    and when the runs are of different data.
    """
    records = read_runs(folders)
    cells, unjudged = cells_of(records)
    refuse_other_data(records)
    level = epoch or _level(cells)
    judged = _judge_all(cells, level, annotations, unjudged)
    path = _one_file([one.annotations for one in judged.values()])
    truth = read_truth(path)
    ground = Ground.of(truth)
    weights = np.concatenate([np.ones((1, len(ground.pictures))), resamples(len(ground.pictures), count)])
    notes: dict[Path, tuple[str, ...]] = {}
    results: dict[Path, RunResult] = {}
    for record in records:
        if record.folder not in judged:
            continue
        tell(len(results), len(judged), str(record.folder))
        try:
            found, remarks = _usable(judged[record.folder].found, truth, path)
        except ValueError as error:
            unjudged[record.folder] = f"its detections after epoch {judged[record.folder].epoch}: {error}"
            continue
        result = _result(record, judged[record.folder].epoch, ground, found, weights)
        results[record.folder] = result
        notes[record.folder] = (*record.faults, *remarks, *_oddities(result))
    tell(len(judged), len(judged), "")
    if not results:
        raise _nothing(unjudged)
    of_cells = [
        CellResult(cell, tuple(results[run.folder] for run in cell.runs if run.folder in results), len(ground.pictures))
        for cell in cells
    ]
    pinned = {folder: judged[folder].pinned for folder in results}
    return Analysis(
        ground,
        path,
        tuple(records),
        tuple(of_cells),
        unjudged,
        notes,
        tuple(differences([cell.cell for cell in of_cells if cell.results], pinned)),
        count,
        level,
    )


def _judge_all(
    cells: Sequence[Cell], level: int | None, annotations: Path | None, unjudged: dict[Path, str]
) -> dict[Path, Judged]:
    """The evaluations by which runs are judged; why there is none goes to `unjudged`. ValueError when all are there."""
    judged = {}
    for record in (record for cell in cells for record in cell.runs):
        reason = _not_yet(record, level)
        if reason:
            unjudged[record.folder] = reason
            continue
        try:
            judged[record.folder] = judge(record, level or record.last, annotations)
        except (ValueError, OSError) as error:
            unjudged[record.folder] = str(error)
    if not judged:
        raise _nothing(unjudged)
    return judged


def _nothing(unjudged: dict[Path, str]) -> ValueError:
    reasons: dict[str, list[str]] = {}
    for folder, why in unjudged.items():
        reasons.setdefault(why, []).append(str(folder))
    # Often all have the same one, which is said once.
    told = "; ".join(f"{', '.join(folders)}: {why}" for why, folders in reasons.items())
    return ValueError(f"none of {len(unjudged)} runs can be judged: {told}")


def _usable(found: Columns, truth: Truth, path: Path) -> tuple[Columns, list[str]]:
    """Detections that can be matched, and what was left out of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = usable(found, truth, path)
    return kept, [str(one.message) for one in caught]


def _level(cells: Sequence[Cell]) -> int | None:
    """The latest epoch that all runs have reached and have detections of, when none is finished."""
    records = [record for cell in cells for record in cell.runs if record.evaluations]
    if any(record.finished for record in records) or not records:
        return None
    common = set.intersection(*({row["epoch"] for row in record.evaluations} for record in records))
    # Without one of which all have kept the detections, it is said of each run that it has not.
    kept = [epoch for epoch in common if all(is_kept(record.evaluated(epoch)) for record in records)]
    return max(kept or common, default=None)


def _not_yet(record: RunRecord, level: int | None) -> str:
    if level is not None and record.ap(level) is None:
        why = "; ".join(record.faults) or f"its last evaluation was after epoch {record.last}"
        return f"it was not evaluated after epoch {level}: {why}"
    if level is None and not record.finished:
        return "; ".join(record.faults) or "it is not finished"
    return ""


def _one_file(paths: Sequence[Path]) -> Path:
    """The annotation file of all runs. Raises ValueError when files of different content are named."""
    versions: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        versions.setdefault(sha256(path), path)
    if len(versions) > 1:
        raise ValueError(
            f"these runs were evaluated on different data: {', '.join(map(str, versions.values()))}. "
            "Their figures cannot be compared: report each group by itself"
        )
    return next(iter(versions.values()))


def _result(record: RunRecord, epoch: int, ground: Ground, found: Columns, weights: Floats) -> RunResult:
    matches = match(ground, found)
    rated = figures(matches, weights)
    overall = rated.overall
    curves = [[precision_at_recall(one, threshold) for one in matches] for threshold in (0, 5)]
    return RunResult(
        record,
        epoch,
        overall[0],
        overall[1:],
        rated.by_class[0, :, 0],
        rated.by_class[1:, :, 0],
        np.stack([_mean_curve([curve for curve in group if curve is not None]) for group in curves]),
        picture_quality(matches, len(ground.pictures)),
        breakdown(ground, found, matches),
        calibration(matches),
        measured(record),
        found,
    )


def _mean_curve(curves: Sequence[NDArray[np.float64]]) -> Floats:
    return np.mean(curves, axis=0) if curves else np.full(101, np.nan)


def _oddities(result: RunResult) -> list[str]:
    """What a reader should know of a run whose figures are used nevertheless."""
    told, logged = [], result.record.ap(result.epoch)
    if not len(result.found.scores):
        told.append("it has detected nothing at all")
    elif not result.plain[0] > 0:
        told.append("none of its detections is right at any IoU that counts")
    if logged is not None and not math.isclose(logged, float(result.plain[0]), abs_tol=DRIFT):
        told.append(
            f"its detections give AP {100 * result.plain[0]:.2f}, but it logged {100 * logged:.2f} after that epoch: "
            "were files changed since?"
        )
    return told
