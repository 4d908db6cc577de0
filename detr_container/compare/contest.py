"""What a task brings to comparisons and reports of its runs; `comparison` and `report` are the same for all."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from detr_container.config.settings import Experiment
from detr_container.jobs.submit import PlannedRun
from detr_container.measure.costs import Costs, Size

from .compared import Compared
from .document import Document
from .options import CompareOptions, ReportOptions

CONTESTS = {
    "detection": "detr_container.compare.detectors:Detectors",
    "classification": "detr_container.compare.classification.classifiers:Classifiers",
}
"""By task, `module:Class`."""
C = TypeVar("C", bound=Compared[Any])
Progress = Callable[[int, int, str], None]
"""Takes runs done, of how many, and the next one."""


@dataclass(frozen=True)
class Amount:
    """What a run computes: size: (height, width) in pixels that evaluation sees most often; images: of an epoch.

    unit: what an epoch is counted in.
    """

    size: Size
    classes: int
    images: int
    unit: str = "images"


class Contest(ABC, Generic[C]):
    """How runs of one task are planned, compared and reported on."""

    # -- the plan -------------------------------------------------------------------------------------------------

    @abstractmethod
    def planned(self, home: Path, options: CompareOptions) -> list[PlannedRun]:
        """Every run of a comparison, each in a folder within `home`. Raises ValueError for options that do not fit."""

    @abstractmethod
    def check(self, experiment: Experiment) -> None:
        """Raise ValueError or OSError for an arm that cannot be trained, without building its weights."""

    def together(self, runs: Sequence[PlannedRun], trained: Sequence[Experiment]) -> list[PlannedRun]:
        """The runs with what all must share; trained: an experiment of each arm that can be trained."""
        del trained
        return list(runs)

    @abstractmethod
    def amounts(self, arms: Mapping[str, Experiment]) -> dict[str, Amount]:
        """What a run of each arm computes, by label. Raises ValueError or OSError for data that cannot be used."""

    # -- the report -----------------------------------------------------------------------------------------------

    @abstractmethod
    def check_report(self, options: ReportOptions) -> None:
        """Raise ValueError for options of a report that are another task's."""

    @abstractmethod
    def analyse(self, folders: Sequence[Path], options: ReportOptions, on_progress: Progress) -> C:
        """Evaluate runs on the same data. Raises ValueError when none can be, and when they are of different data."""

    @abstractmethod
    def costs(self, analysis: C, experiment: Experiment) -> Costs:
        """What an arm's model costs at its evaluation. Raises ValueError, RuntimeError or OSError if it cannot be."""

    @abstractmethod
    def largest(self, analysis: C) -> tuple[Size, int]:
        """The largest size of an evaluation, (height, width) in pixels, and how many classes there are."""

    @abstractmethod
    def document(
        self,
        analysis: C,
        known: Mapping[str, Costs],
        latencies: Mapping[str, Any],
        options: ReportOptions,
        commands: str,
        trouble: Sequence[str] = (),
    ) -> Document:
        """All that the page contains.

        known, latencies: by arm's label; commands: that make it again; trouble: more warnings.
        """


def contest_of(task: str) -> Contest[Any]:
    """What a task brings. Raises ValueError for one whose runs are not compared."""
    if task not in CONTESTS:
        raise ValueError(f"runs of the task {task} cannot be compared, only those of {' and '.join(CONTESTS)}")
    module, _, name = CONTESTS[task].partition(":")
    found: Contest[Any] = getattr(importlib.import_module(module), name)()
    return found
