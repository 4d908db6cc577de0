"""The predictions of one of a run's evaluations, with what they are of and how they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detr_container.base.checked import Schema
from detr_container.base.terminal import shown
from detr_container.engine.run_files import ScoresFile
from detr_container.tasks.classification.class_names import spoken
from detr_container.tasks.classification.predictions import NAME, Predictions

from ..reading import RunRecord, nothing_kept, read_scores

DATA = ("annotations", "sha256", "images")
"""What an evaluation notes of its data, which is compared by itself."""


class _ClassScore(Schema):
    name: str


class _Scores(ScoresFile):
    """scores.json, beside predictions."""

    per_class: list[_ClassScore]


@dataclass(frozen=True)
class Truth:
    """The validation split: image_ids: [N], labels: [N] int64; names: of the classes, by label.

    folder: where it was; version: the digest of its list of files, empty where none was noted.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    folder: Path
    version: str

    @cached_property
    def told(self) -> tuple[str, ...]:
        """The names to be read, of ImageNet's ids a word."""
        return told(self.names)

    def counts(self) -> NDArray[np.int64]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.names)).astype(np.int64)

    def is_same(self, other: Truth) -> bool:
        """Whether the same images have the same labels; moved folders are the same."""
        known = not (self.version and other.version) or self.version == other.version
        arrays = ((self.image_ids, other.image_ids), (self.labels, other.labels))
        return known and self.names == other.names and all(np.array_equal(a, b) for a, b in arrays)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run; eval_settings: how it was made, its data aside."""

    epoch: int
    found: Predictions
    truth: Truth
    eval_settings: dict[str, Any]


def told(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes to be read: of ImageNet's ids the first of each one's words, with the id where two share it."""
    words = [shown(word) for word in spoken(names)]
    count = Counter(words)
    return tuple(f"{word} ({name})" if count[word] > 1 else word for word, name in zip(words, names, strict=True))


def is_kept(folder: Path) -> bool:
    """Whether an evaluation's folder still has its predictions."""
    return (folder / NAME).is_file()


def read_evaluation(record: RunRecord, epoch: int) -> Evaluation:
    """Read the predictions of an epoch. Raises ValueError or OSError when they are missing or cannot be read."""
    folder = record.evaluated(epoch)
    if not is_kept(folder):
        raise nothing_kept(folder / NAME, epoch, "predictions")
    path = folder / "scores.json"
    scores = read_scores(path, _Scores)
    found, names = Predictions.read(folder / NAME), tuple(one["name"] for one in scores["per_class"])
    if not len(found.labels):
        raise ValueError(f"{folder / NAME} is of no image: evaluate on a validation split that has some")
    if max(int(found.labels.max()), int(found.classes.max())) >= len(names):
        raise ValueError(
            f"{folder / NAME} has more classes than the {len(names)} of {path}: they are of two evaluations"
        )
    noted = scores["evaluated_with"]
    truth = Truth(found.image_ids, found.labels, names, Path(noted.get("annotations", "")), _digest(noted))
    return Evaluation(epoch, found, truth, {name: value for name, value in noted.items() if name not in DATA})


def _digest(noted: Mapping[str, Any]) -> str:
    found = noted.get("sha256")
    return found if isinstance(found, str) else ""
