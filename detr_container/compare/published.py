"""Published metrics of the same heads on the same backbones: COCO val2017, 50 epochs. Never mixed with ours."""

from __future__ import annotations

from collections.abc import Sequence

from detr_container.config.detection import DetectionExperiment
from detr_container.config.experiments import named, names
from detr_container.config.published import PublishedAp
from detr_container.datasets.coco_classes import COCO


def published(experiment: DetectionExperiment, classes: Sequence[str]) -> PublishedAp | None:
    """What was published of this head on this backbone; None where nothing was, or of another variant or data set."""
    if experiment.backbone.dilation or set(classes) != {category.name for category in COCO}:
        return None
    for entry in map(named, names()):
        other = entry.experiment
        if entry.published and isinstance(other, DetectionExperiment):
            alike = other.head.kind == experiment.head.kind and other.backbone.name == experiment.backbone.name
            if alike and not other.backbone.dilation:
                first = entry.published[0]
                return first if isinstance(first, PublishedAp) else None
    return None
