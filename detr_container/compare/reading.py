"""Runs as they are found: finished, in progress, crashed, half-written. What is wrong with one is named, never raised.

A run is evaluated by what one of its evaluations left on disk (detections, predictions), not by the metrics it logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from detr_container.base.checked import Schema, read_json, read_lines
from detr_container.config import settings as config
from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import Experiment
from detr_container.config.traits import NO_MATTER, traits_of
from detr_container.engine.run import Run, evaluation_of
from detr_container.engine.run_files import EvaluationLine, MetricsLine, ProvenanceLine, ScoresFile
from detr_container.jobs.status import ACTIVE, RunStatus, statuses_of

from .detectron2.experiment import is_theirs

HEADS = {"detr": "DETR", "smca": "SMCA-DETR", "retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN"}


@dataclass(frozen=True)
class RunRecord:
    """What is known of one run.

    experiment: None where its configuration cannot be read; state: as `status` shows it; evaluations, metrics,
    provenance: the lines that can be read; faults: what is wrong, a sentence each.
    """

    folder: Path
    experiment: Experiment | None
    state: str
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    faults: tuple[str, ...] = ()

    unit: ClassVar[str] = "epoch"
    """What `last`, `best` and the argument of `logged` count."""
    keeps_epochs: ClassVar[bool] = True
    """Whether it may be evaluated after an earlier one than its last."""

    @property
    def seed(self) -> int | None:
        """None where it noted none."""
        return self.experiment.seed if self.experiment is not None else None

    @property
    def counts_devices(self) -> bool:
        """Whether it is known on how many devices it ran."""
        return True

    @property
    def finished(self) -> bool:
        """Whether its last epoch was evaluated."""
        return bool(self.evaluations) and self.experiment is not None and self.last >= self.experiment.train.epochs

    @property
    def last(self) -> int:
        """The newest epoch that was evaluated; 0: none."""
        return max((row["epoch"] for row in self.evaluations), default=0)

    @property
    def best(self) -> int:
        """The evaluated epoch of the highest headline metric, the first of equals; 0: none."""
        rated = [row for row in self.evaluations if row.get(self._headline) is not None]
        return max(rated, key=lambda row: row[self._headline])["epoch"] if rated else 0

    def logged(self, epoch: int, key: str = "") -> float | None:
        """The metric that the run itself logged for an epoch; without a key, the headline."""
        return next((row.get(key or self._headline) for row in self.evaluations if row["epoch"] == epoch), None)

    @property
    def _headline(self) -> str:
        if self.experiment is not None:
            return self.experiment.metrics[0].key
        # Settings that cannot be read do not say whose evaluations these are.
        return "top1" if any("top1" in row for row in self.evaluations) else "ap"

    def moment(self, epoch: int) -> str:
        """An epoch as tables show it."""
        return str(epoch)

    def not_yet(self, level: int | None) -> str:
        """Why it cannot be evaluated after an epoch (None: its last); empty where it can."""
        if level is not None and self.logged(level) is None:
            why = "; ".join(self.faults) or f"its last evaluation was after epoch {self.last}"
            return f"it was not evaluated after epoch {level}: {why}"
        if level is None and not self.finished:
            return "; ".join(self.faults) or "it is not finished"
        return ""

    def evaluated(self, epoch: int) -> Path:
        """The folder of an epoch's evaluation."""
        return evaluation_of(self.folder, epoch)

    def version(self, split: str) -> str | None:
        """The digest of the annotation file that it was started with; None where it was not noted."""
        noted = [line["data"][split]["sha256"] for line in self.provenance if _has_data(line, split)]
        return noted[-1] if noted else None


def _has_data(line: Mapping[str, Any], split: str) -> bool:
    try:
        return bool(line["data"][split]["sha256"])
    except (KeyError, TypeError):
        return False


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs, the queue asked once for all of them."""
    return [_read(folder, status) for folder, status in zip(folders, statuses_of(folders), strict=True)]


def _read(folder: Path, status: RunStatus) -> RunRecord:
    faults: list[str] = []
    run, experiment = Run(folder), None
    try:
        experiment = run.experiment()
    except (ValueError, OSError) as error:
        faults.append(str(error))
    evaluations = _lines(run.evaluations_path, faults, EvaluationLine)
    metrics = _lines(run.metrics_path, faults, MetricsLine)
    provenance = _lines(folder / "provenance.jsonl", faults, ProvenanceLine)
    if any(row.get("loss", 0.0) is None for row in metrics):
        faults.append("its loss was not a number at some step")
    if any(row.get("ap", 0.0) is None for row in evaluations):
        faults.append("an evaluation has no AP: there was no object to find")
    record = RunRecord(folder, experiment, status.state, evaluations, metrics, provenance, tuple(faults))
    if experiment is not None and not record.finished:
        faults.append(_unfinished(record, experiment, status))
    return RunRecord(folder, experiment, status.state, evaluations, metrics, provenance, tuple(faults))


def _unfinished(record: RunRecord, experiment: Experiment, status: RunStatus) -> str:
    last = f"last evaluated after epoch {record.last}" if record.last else "not evaluated yet"
    verb = "still in progress" if status.state in ACTIVE else status.state
    why = f" ({status.message})" if status.message else ""
    return f"{verb}{why}: {last} of {experiment.train.epochs}"


def _lines(path: Path, faults: list[str], schema: type[Schema]) -> list[dict[str, Any]]:
    """The lines of a log that are as they were written."""
    try:
        return read_lines(path, schema, faults)
    except FileNotFoundError:
        faults.append(f"{path.name} is missing")
        return []
    except (OSError, ValueError) as error:
        faults.append(str(error))
        return []


def nothing_kept(path: Path, epoch: int, what: str) -> ValueError:
    """The error that a file of an evaluation is gone. what: it kept, as the setting calls it."""
    return ValueError(
        f"{path} is missing, so nothing is left of its evaluation after epoch {epoch}: runs keep {what} of their "
        f"newest and their best epoch, and with train.keep_{what}=all of every one"
    )


def read_scores(path: Path, schema: type[ScoresFile] = ScoresFile) -> dict[str, Any]:
    """An evaluation's scores.json, which says how it was made. Raises ValueError when that cannot be read."""
    try:
        return read_json(path, schema)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it holds how the evaluation was made") from error


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """The settings that make a run what it is, its seed aside."""
    if is_theirs(experiment):
        return dict(experiment.settings)
    traits = traits_of(type(experiment))
    return {name: value for name, value in config.flatten(experiment).items() if traits[name].topic != NO_MATTER}


def head_of(experiment: Experiment) -> str:
    """The head as tables name it; empty where none is compared."""
    if is_theirs(experiment):
        return experiment.head_name
    return HEADS[experiment.head.kind] if isinstance(experiment, DetectionExperiment) else ""


def label_of(experiment: Experiment) -> str:
    """Head and backbone as tables name them, or what there is of them."""
    if is_theirs(experiment):
        return f"{experiment.head_name}, {experiment.backbone_name}"
    if isinstance(experiment, DetectionExperiment | ClassificationExperiment):
        return ", ".join(filter(None, (head_of(experiment), experiment.backbone.label)))
    return experiment.model_label
