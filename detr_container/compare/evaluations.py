"""The detections of one of a run's evaluations, with what they were made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_container.base.files import sha256
from detr_container.tasks.detection.coco_results import is_kept, read_kept
from detr_container.tasks.detection.detections import NAME, Columns

from .detectron2.folders import Detectron2Run, detections_of, renumbered
from .reading import RunRecord, nothing_kept, read_scores


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run; annotations: the file it was made with; eval_settings: how it was made.

    own: of detectron2's, which do not say what they were made with, the file that it made of the data set for itself,
    if it did; the ids of classes in `found` are then that one's.
    """

    epoch: int
    found: Columns
    annotations: Path | None
    eval_settings: dict[str, Any]
    own: Path | None = None

    def by(self, names: dict[int, str]) -> Columns:
        """What was found, by the ids that an annotation file gives the classes, as it names them."""
        return self.found if self.own is None else renumbered(self.found, self.own, names)


def read_evaluation(record: RunRecord, epoch: int, annotations: Path | None = None) -> Evaluation:
    """Read the detections of an epoch.

    annotations: use this file rather than the one that the evaluation names. Raises ValueError when they are
    missing, cannot be read, or the annotation file is not the one that the run was started with.
    """
    if isinstance(record, Detectron2Run):
        found, own = detections_of(record)
        return Evaluation(epoch, found, annotations, record.evaluated_with or {}, own)
    folder = record.evaluated(epoch)
    if not is_kept(folder):
        raise nothing_kept(folder / NAME, epoch, "detections")
    eval_settings = read_scores(folder / "scores.json")["evaluated_with"]
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
