"""Published accuracies of the same backbones on ImageNet. Never mixed with ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from detr_container.config.classification import ClassificationExperiment
from detr_container.config.experiments import named, names
from detr_container.config.published import PublishedTop1
from detr_container.tasks.classification.class_names import imagenet_ids

from .evaluations import told


def published(experiment: ClassificationExperiment, classes: Sequence[str]) -> PublishedTop1 | None:
    """What was published of this backbone; None where nothing was, or of other classes than ImageNet's 1,000."""
    if set(classes) not in _imagenet():
        return None
    for entry in map(named, names()):
        other = entry.experiment
        if isinstance(other, ClassificationExperiment) and other.backbone.name == experiment.backbone.name:
            found = [one for one in entry.published if isinstance(one, PublishedTop1)]
            if found:
                return found[0]
    return None


@cache
def _imagenet() -> list[set[str]]:
    """ImageNet-1k's classes by their folders, and as torchvision's archive names them: each the first synonym."""
    folders = imagenet_ids()
    return [set(folders), set(told(folders))]
