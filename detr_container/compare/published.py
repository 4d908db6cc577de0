"""Published metrics of the same heads on the same backbones, of COCO val2017. Never mixed with ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named, names
from detr_container.config.published import PublishedAp
from detr_container.datasets.coco_classes import COCO

from .detectron2.experiment import is_theirs


@dataclass(frozen=True)
class Known:
    """What was published of a head on a backbone, and after how many epochs."""

    metrics: PublishedAp
    epochs: int


def published(experiment: DetectionExperiment, classes: Sequence[str]) -> Known | None:
    """What was published of this head on this backbone; None where nothing was, or of another variant or data set."""
    if is_theirs(experiment) or experiment.backbone.dilation or set(classes) != {category.name for category in COCO}:
        return None
    for entry in map(named, names()):
        other = entry.experiment
        if entry.published and isinstance(other, DetectionExperiment):
            alike = other.head.kind == experiment.head.kind and other.backbone.name == experiment.backbone.name
            if alike and not other.backbone.dilation:
                first = entry.published[0]
                return Known(first, other.train.epochs) if isinstance(first, PublishedAp) else None
    return None
