"""Comparisons and reports of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detr_container.config.classification import classification
from detr_container.config.settings import Experiment
from detr_container.engine.trials import trials_of
from detr_container.jobs.submit import PlannedRun
from detr_container.measure.costs import Costs, Size, costs

from .. import drawings, ranking, sections
from ..classes import classes
from ..contest import Amount, Contest, Progress
from ..document import Document, Section
from ..options import CompareOptions, ReportOptions
from ..ranking import Pair
from . import gallery, milestones, mistakes, progress, results
from .analysis import Analysis, ArmResult, analyse
from .grid import check_arm, runs_of


class Classifiers(Contest[Analysis]):
    """Backbones x seeds, by top-1 accuracy."""

    def planned(self, home: Path, options: CompareOptions) -> list[PlannedRun]:
        """See `Contest`."""
        if options.heads:
            raise ValueError(
                f"--heads {' '.join(options.heads)}: a classifier has no such head, backbones alone are compared; "
                "leave it out"
            )
        return runs_of(home, options.backbones, options.seeds, options.base, options.setting)

    def check(self, experiment: Experiment) -> None:
        """See `Contest`."""
        check_arm(classification(experiment))

    def amounts(self, arms: Mapping[str, Experiment]) -> dict[str, Amount]:
        """See `Contest`; all arms share their data."""
        first = trials_of(next(iter(arms.values())))
        task = first.opened()
        images, known = task.training_images, first.classes(task)
        sides = {label: classification(experiment).data.evaluated_at for label, experiment in arms.items()}
        return {label: Amount((side, side), known, images, "views") for label, side in sides.items()}

    def check_report(self, options: ReportOptions) -> None:
        """See `Contest`."""
        if options.annotations is not None:
            raise ValueError(f"--annotations {options.annotations}: classification has no such file; leave it out")

    def analyse(self, folders: Sequence[Path], options: ReportOptions, on_progress: Progress) -> Analysis:
        """See `Contest`."""
        return analyse(folders, options.epoch or None, options.resamples, on_progress)

    def costs(self, analysis: Analysis, experiment: Experiment) -> Costs:
        """See `Contest`."""
        side = classification(experiment).data.evaluated_at
        return costs(experiment, len(analysis.truth.names), [(side, side)])

    def largest(self, analysis: Analysis) -> tuple[Size, int]:
        """See `Contest`."""
        side = max(arm.experiment.data.evaluated_at for arm in analysis.evaluated)
        return (side, side), len(analysis.truth.names)

    def document(
        self,
        analysis: Analysis,
        known: Mapping[str, Costs],
        latencies: Mapping[str, Any],
        options: ReportOptions,
        commands: str,
        trouble: Sequence[str] = (),
    ) -> Document:
        """See `Contest`."""
        pairs = ranking.pairs_of(analysis.evaluated, list(analysis.metrics))
        target = milestones.target_of(analysis, options.target)
        images, metric = len(analysis.truth.labels), analysis.evaluated[0].experiment.metrics[0]
        gmacs = {label: cost.gflops.total / results.MACS for label, cost in known.items()}
        milliseconds = sections.milliseconds(latencies)
        parts = [
            results.headline(analysis, known, milliseconds),
            _differences(analysis, pairs),
            progress.section(analysis, target),
            milestones.section(analysis, target),
            sections.costs(analysis, metric, "classifier", "GMACs", gmacs, latencies),
            _classes(analysis, pairs),
            mistakes.confusions(analysis),
            mistakes.calibration(analysis),
            gallery.section(analysis),
            sections.fairness(analysis.differences),
            ranking.runs(analysis, metric.label),
            sections.again(analysis, commands),
        ]
        title = options.title or f"{_compared(analysis)} on {images:,} images"
        data = {"runs": results.data_of(analysis), "costs": {label: asdict(cost) for label, cost in known.items()}}
        warnings = [*ranking.warnings(analysis), *trouble]
        return Document(title, _summary(analysis, pairs, target), warnings, parts, data)


def _differences(analysis: Analysis, pairs: Sequence[Pair[ArmResult]]) -> Section:
    """Every difference, and how many images make it."""
    images = len(analysis.truth.labels)
    found = ranking.differences(pairs, list(analysis.metrics.values()), images, analysis.resamples)
    if not pairs:
        return found
    text = [
        *found.text,
        "What both get right, or neither, says nothing of a difference, as in McNemar's test: resampling the images "
        "together weighs those that only one of the two gets right, which are counted below.",
    ]
    tables = [*found.tables, results.discordant(pairs, images)]
    return replace(found, text=text, tables=tables, figures=[drawings.forest(pairs, "top-1")])


def _classes(analysis: Analysis, pairs: Sequence[Pair[ArmResult]]) -> Section:
    """Top-1 by class, and which classes differ."""
    found = classes(pairs, analysis.truth.told, analysis.truth.counts(), "images", "top-1")
    return replace(found, tables=[mistakes.by_class(analysis), *found.tables])


def _compared(analysis: Analysis) -> str:
    count = len(analysis.arms)
    return f"{count} classifiers compared" if count > 1 else "One classifier"


def _summary(analysis: Analysis, pairs: Sequence[Pair[ArmResult]], target: milestones.Target) -> list[str]:
    """What came out, in sentences."""
    found = ranking.findings(analysis.evaluated, pairs, "top1", "top-1") or [ranking.NO_PAIR]
    if len(analysis.evaluated) > 1:
        found.append(milestones.findings(analysis, target))
    if any(any(arm.experiment.data.make_shapes) for arm in analysis.evaluated):
        found.append(
            "These runs are on synthetic images of single shapes: the metrics show that the machinery works, and "
            "nothing about photographs."
        )
    return found
