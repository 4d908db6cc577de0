"""What is known of compared runs, whatever their task: results by run, arms with theirs, and which epoch counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np

from .arms import Arm
from .fairness import Difference
from .intervals import Floats, Sample
from .measured import Measured
from .reading import RunRecord

DRIFT = 1e-6
"""By how much the metric that a run logged may differ from that of what it kept before something is wrong."""


@dataclass(frozen=True)
class Result:
    """One run, evaluated at one epoch; measured: what it cost.

    plain: [M] its arm's metrics, resampled: [B, M]; by_class: [K] the first of them for each class, and
    by_class_resampled: [B, K].
    """

    record: RunRecord
    epoch: int
    measured: Measured
    plain: Floats
    resampled: Floats
    by_class: Floats
    by_class_resampled: Floats

    @property
    def headline(self) -> float:
        """The metric that stands for the run, from 0 to 1."""
        return float(self.plain[0])

    def drift(self, gives: str) -> list[str]:
        """What a reader should know where the run logged another headline metric. gives: what kept gives which."""
        return self._drift(self.record.logged(self.epoch), gives)

    def _drift(self, logged: float | None, gives: str) -> list[str]:
        if logged is None or math.isclose(logged, self.headline, abs_tol=DRIFT):
            return []
        return [
            f"{gives} {100 * self.headline:.2f}, but it logged {100 * logged:.2f} after that {self.record.unit}: "
            "were files changed since?"
        ]


@dataclass(frozen=True)
class Rated(Arm):
    """An arm with the results of those of its runs that could be evaluated; images: how many there are.

    metrics: the names of a result's, in order; shares: whether they are shares of the images that are right.
    """

    results: tuple[Result, ...]
    images: int
    metrics: ClassVar[tuple[str, ...]]
    shares: ClassVar[bool] = False

    def sample(self, metric: str) -> Sample:
        """A metric over the arm's seeds, and in every resample of the images."""
        place = self.metrics.index(metric)
        plain = np.array([result.plain[place] for result in self.results])
        resampled = np.stack([result.resampled[:, place] for result in self.results])
        return Sample(plain, resampled, self.images, self.shares)

    def class_sample(self, label: int) -> Sample:
        """The same of the first metric for one class."""
        plain = np.array([result.by_class[label] for result in self.results])
        resampled = np.stack([result.by_class_resampled[:, label] for result in self.results])
        return Sample(plain, resampled, self.images_of(label), self.shares)

    def images_of(self, label: int) -> int:
        """How many images a class's metric is of: all, since what is found where it is not counts as well."""
        del label
        return self.images


R = TypeVar("R", bound=Rated)
E = TypeVar("E")


@dataclass(frozen=True)
class Compared(Generic[R]):
    """All that a report of any task contains.

    arms: all of them, also those of which no run could be evaluated; left_out: why a run was left out of means;
    notes: what is odd about runs that were not; resamples: how many; level_epoch: after which epoch all were evaluated,
    None: each after its last.
    """

    records: tuple[RunRecord, ...]
    arms: tuple[R, ...]
    left_out: dict[Path, str]
    notes: dict[Path, tuple[str, ...]]
    differences: tuple[Difference, ...]
    resamples: int
    level_epoch: int | None

    @property
    def evaluated(self) -> list[R]:
        """Arms of which at least one run could be evaluated."""
        return [arm for arm in self.arms if arm.results]


def level_of(arms: Sequence[Arm], is_kept: Callable[[Path], bool]) -> int | None:
    """The latest epoch that all runs have reached and have kept, when none is finished. is_kept: of an evaluation."""
    records = [record for arm in arms for record in arm.runs if record.evaluations and record.keeps_epochs]
    if any(record.finished for record in records) or not records:
        return None
    common = set.intersection(*({row["epoch"] for row in record.evaluations} for record in records))
    # Without one that all have kept, each run is reported as lacking it.
    kept = [epoch for epoch in common if all(is_kept(record.evaluated(epoch)) for record in records)]
    return max(kept or common, default=None)


def read_each(
    arms: Iterable[Arm], level: int | None, read: Callable[[RunRecord, int], E], left_out: dict[Path, str]
) -> dict[Path, E]:
    """The evaluation that counts of each run; why there is none goes to `left_out`. ValueError when none has any."""
    evaluated = {}
    for record in (record for arm in arms for record in arm.runs):
        if reason := record.not_yet(level):
            left_out[record.folder] = reason
            continue
        try:
            after = level if level and record.keeps_epochs else record.last
            evaluated[record.folder] = read(record, after)
        except (ValueError, OSError) as error:
            left_out[record.folder] = str(error)
    if not evaluated:
        raise nothing(left_out)
    return evaluated


def nothing(left_out: dict[Path, str]) -> ValueError:
    """The error that no run can be evaluated."""
    reasons: dict[str, list[str]] = {}
    for folder, why in left_out.items():
        reasons.setdefault(why, []).append(str(folder))
    # Often all have the same one, which is named once.
    listed = "; ".join(f"{', '.join(folders)}: {why}" for why, folders in reasons.items())
    return ValueError(f"none of {len(left_out)} runs can be evaluated: {listed}")
