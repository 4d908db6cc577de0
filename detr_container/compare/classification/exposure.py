"""What a run has been shown: with repeated augmentation, an epoch is a part of the images, each several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detr_container.config.classification import ClassificationExperiment

from ..reading import RunRecord


@dataclass(frozen=True)
class Exposure:
    """Of one epoch: steps; views: images as the network gets them; distinct: how many different images those are of.

    images: of the training set; None where it was not noted.
    """

    steps: float
    views: float
    distinct: float
    images: int | None

    @property
    def repeats(self) -> float:
        """Views of each image that is shown."""
        return self.views / self.distinct


def exposure(record: RunRecord, experiment: ClassificationExperiment) -> Exposure:
    """What an epoch of a run that was evaluated showed, from the steps that it took."""
    row = record.evaluations[-1]
    steps = row["step"] / row["epoch"]
    views = steps * experiment.train.batch
    # Views of an image follow one another in the order of an epoch, which ends when all steps are taken.
    return Exposure(steps, views, views / experiment.data.repeats, _images(record.provenance))


def _images(provenance: list[dict[str, Any]]) -> int | None:
    """Of the training set, as the newest start noted."""
    for line in reversed(provenance):
        noted = (line.get("data") or {}).get("train")
        found = noted.get("images") if isinstance(noted, Mapping) else None
        if isinstance(found, int):
            return found
    return None
