"""What stands in the place of an experiment's settings where detectron2 trained the detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import Experiment

REFUSAL = "detectron2 trained it, and its model is not built here"


@dataclass(frozen=True)
class Detectron2Experiment(DetectionExperiment):
    """A detector of detectron2's. What it inherits are our usual settings, which say nothing of it.

    settings: what its own configuration says, by dotted names, without what changes no result.
    """

    head_name: str = "detectron2"
    backbone_name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_label(self) -> str:
        """See `Experiment`."""
        return f"{self.head_name} on {self.backbone_name}"

    @property
    def anchors(self) -> bool:
        """Its loss is the sum of its terms, as that of detectron2's models is here."""
        return True


def is_theirs(experiment: Experiment) -> TypeGuard[Detectron2Experiment]:
    """Whether detectron2 trained it."""
    return isinstance(experiment, Detectron2Experiment)
