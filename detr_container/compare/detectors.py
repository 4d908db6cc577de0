"""Comparisons and reports of detectors."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detr_container.config.detection import DataConfig, DetectionExperiment, detection
from detr_container.config.settings import Experiment
from detr_container.jobs.submit import PlannedRun
from detr_container.measure.costs import Costs, Size, costs
from detr_container.tasks.detection.build import check_backbone, open_data
from detr_container.tasks.detection.largest import validation_sizes

from . import detector_sections, drawings, plots, ranking, results, sections
from .analysis import Analysis, RunResult, analyse
from .contest import Amount, Contest, Progress
from .detectron2.experiment import REFUSAL, is_theirs
from .document import Document, Section
from .fairness import of_strides
from .grid import HEADS, check_arm, on_one_grid, runs_of
from .options import CompareOptions, ReportOptions
from .precision import METRICS

COMPARED = ("ap", "ap50", "ap75")
"""Metrics of boxes, and of masks, whose differences have intervals."""
_log = logging.getLogger(__name__)


class Detectors(Contest[Analysis]):
    """Heads x backbones x seeds, by box AP, and by mask AP where detectors find masks."""

    def __init__(self) -> None:
        self._faults: dict[DataConfig, str] = {}

    def planned(self, home: Path, options: CompareOptions) -> list[PlannedRun]:
        """See `Contest`."""
        heads = options.heads or HEADS
        return runs_of(home, heads, options.backbones, options.seeds, options.base, options.setting)

    def check(self, experiment: Experiment) -> None:
        """See `Contest`."""
        check_arm(detection(experiment))
        check_backbone(detection(experiment))
        on_one_grid([detection(experiment)])
        if detection(experiment).masks:
            self._check_masks(detection(experiment))

    def _check_masks(self, experiment: DetectionExperiment) -> None:
        """Raise ValueError for data without masks, which are read once for all arms."""
        if experiment.data not in self._faults:
            try:
                open_data(experiment)
                self._faults[experiment.data] = ""
            except (ValueError, OSError) as error:
                self._faults[experiment.data] = str(error)
        if fault := self._faults[experiment.data]:
            raise ValueError(fault)

    def together(self, runs: Sequence[PlannedRun], trained: Sequence[Experiment]) -> list[PlannedRun]:
        """See `Contest`: one grid for the canvases of all arms."""
        multiple = on_one_grid([detection(each) for each in trained])
        if not multiple:
            return list(runs)
        _log.info("data.canvas_multiple=%d, so that all backbones have the same canvases", multiple)
        found = []
        for run in runs:
            experiment = detection(run.experiment)
            experiment = replace(experiment, data=replace(experiment.data, canvas_multiple=multiple))
            found.append(replace(run, experiment=experiment))
        return found

    def amounts(self, arms: Mapping[str, Experiment]) -> dict[str, Amount]:
        """See `Contest`; all arms share their data."""
        # Boxes are read faster than masks, and are in more files.
        data = open_data(min(map(detection, arms.values()), key=lambda experiment: experiment.masks))
        found = {}
        for label, experiment in arms.items():
            sizes = Counter(validation_sizes(detection(experiment), data.val.annotations))
            found[label] = Amount(sizes.most_common(1)[0][0], len(data.classes), len(data.train))
        return found

    def check_report(self, options: ReportOptions) -> None:
        """See `Contest`."""
        if options.target:
            raise ValueError(f"--target {options.target}: it is an accuracy, for runs of classification; leave it out")

    def analyse(self, folders: Sequence[Path], options: ReportOptions, on_progress: Progress) -> Analysis:
        """See `Contest`."""
        return analyse(folders, options.annotations, options.epoch or None, options.resamples, on_progress)

    def costs(self, analysis: Analysis, experiment: Experiment) -> Costs:
        """See `Contest`."""
        if is_theirs(experiment):
            raise ValueError(REFUSAL)
        sizes = validation_sizes(detection(experiment), analysis.images)
        return costs(experiment, len(analysis.ground.names), sizes)

    def largest(self, analysis: Analysis) -> tuple[Size, int]:
        """See `Contest`."""
        first = next(arm.experiment for arm in analysis.evaluated if not is_theirs(arm.experiment))
        sizes = validation_sizes(first, analysis.images)
        return max(sizes, key=lambda size: size[0] * size[1]), len(analysis.ground.names)

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
        strides = {arm.label: known[arm.label].strides if arm.label in known else None for arm in analysis.evaluated}
        pyramids = {arm.label: arm.head for arm in analysis.evaluated if arm.experiment.anchors}
        analysis = replace(analysis, differences=(*of_strides(strides, pyramids), *analysis.differences))
        pairs = ranking.pairs_of(analysis.evaluated, COMPARED)
        by_masks = ranking.pairs_of(analysis.by_masks, COMPARED)
        warnings = [*ranking.warnings(analysis), *trouble]
        summary = ranking.findings(analysis.evaluated, pairs, "ap", "AP") or [ranking.NO_PAIR]
        summary += ranking.findings(analysis.by_masks, by_masks, "ap", "mask AP", " by mask AP")
        if _synthetic(analysis):
            summary.append(
                "These runs are on synthetic images of coloured shapes: the metrics show that the machinery works, "
                "and nothing about photographs."
            )
        images = len(analysis.ground.images)
        headline = analysis.evaluated[0].experiment.metrics[0]
        parts = [
            results.headline(analysis, known),
            detector_sections.differences(analysis, pairs, by_masks),
            detector_sections.curves(analysis),
            sections.costs(analysis, headline, "detector", "GFLOPs", drawings.gflops(known), latencies),
            detector_sections.sizes(analysis, pairs, by_masks),
            *detector_sections.by_class(analysis, pairs, by_masks),
            detector_sections.error_kinds(analysis),
            Section("precision", "Precision and recall", figures=plots.precision_recall(analysis)),
            detector_sections.calibration(analysis),
            detector_sections.images(analysis),
            sections.fairness(analysis.differences),
            ranking.runs(analysis, "AP"),
            sections.again(analysis, commands),
        ]
        count = len(analysis.arms)
        compared = f"{count} detectors compared" if count > 1 else "One detector"
        title = options.title or f"{compared} on {images} images"
        return Document(title, summary, warnings, parts, _data(analysis, known))


def _synthetic(analysis: Analysis) -> bool:
    return any(any(arm.experiment.data.make_shapes) for arm in analysis.evaluated)


def _data(analysis: Analysis, known: Mapping[str, Costs]) -> dict[str, Any]:
    """Metrics as fractions, run by run."""
    runs = {}
    for arm in analysis.evaluated:
        for one in arm.results:
            runs[str(one.record.folder)] = {
                "cell": arm.label,
                "epoch": one.epoch,
                **dict(zip(METRICS, one.plain.tolist(), strict=True)),
                "ap_by_class": dict(zip(analysis.ground.names, one.by_class.tolist(), strict=True)),
                **_mask_data(one, analysis.ground.names),
                "errors": asdict(one.errors),
            }
    return {"runs": runs, "costs": {label: asdict(cost) for label, cost in known.items()}}


def _mask_data(one: RunResult, classes: Sequence[str]) -> dict[str, Any]:
    """The same of a run's masks; nothing of one without."""
    if one.masks is None:
        return {}
    metrics = dict(zip([f"mask_{name}" for name in METRICS], one.masks.plain.tolist(), strict=True))
    return {**metrics, "mask_ap_by_class": dict(zip(classes, one.masks.by_class.tolist(), strict=True))}
