"""The detections of one of a run's evaluations, with what they were made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_container.base.checked import read_json
from detr_container.base.files import sha256
from detr_container.engine.run_files import ScoresFile
from detr_container.tasks.detection.coco_results import is_kept, read_kept
from detr_container.tasks.detection.detections import NAME, Columns

from .reading import RunRecord


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run; annotations: the file it was made with; eval_settings: how it was made."""

    epoch: int
    found: Columns
    annotations: Path
    eval_settings: dict[str, Any]


def read_evaluation(record: RunRecord, epoch: int, annotations: Path | None = None) -> Evaluation:
    """Read the detections of an epoch.

    annotations: use this file rather than the one that the evaluation names. Raises ValueError when they are
    missing, cannot be read, or the annotation file is not the one that the run was started with.
    """
    folder = record.evaluated(epoch)
    if not is_kept(folder):
        raise ValueError(
            f"{folder / NAME} is missing, so nothing is left of its evaluation after epoch {epoch}: runs keep "
            "detections of their newest and their best epoch, and with train.keep_detections=all of every one"
        )
    eval_settings = eval_settings_of(folder / "scores.json")
    path = annotations or Path(eval_settings.get("annotations", ""))
    if not path.is_file():
        raise ValueError(
            f"the annotation file of its evaluation, {path}, does not exist: name it with --annotations, or run this "
            "where the training was run"
        )
    noted = record.version("val")
    if noted is not None and sha256(path) != noted:
        raise ValueError(
            f"{path} is not the annotation file that it was evaluated with (SHA-256 {sha256(path)[:12]}, then "
            f"{noted[:12]}): put that one back, or name it with --annotations"
        )
    return Evaluation(epoch, read_kept(folder), path, eval_settings)


def eval_settings_of(path: Path) -> dict[str, Any]:
    """How an evaluation was made, from its scores.json. Raises ValueError when that cannot be read."""
    try:
        return dict(read_json(path, ScoresFile)["evaluated_with"])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it holds how the evaluation was made") from error
