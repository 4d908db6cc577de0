"""A report of runs: from their folders to the page."""

from __future__ import annotations

import glob
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress

from detr_container.base.checked import read_json
from detr_container.base.files import write_json
from detr_container.base.terminal import column, console
from detr_container.engine.run_files import BenchmarkFile, PlanFile
from detr_container.jobs.status import runs_in
from detr_container.measure.costs import Costs, costs
from detr_container.tasks.detection.largest import validation_sizes

from . import plots, results, sections
from .analysis import Analysis, analyse
from .document import Document, Section
from .fairness import of_strides
from .options import PLAN, ReportOptions
from .page import write
from .precision import METRICS

_log = logging.getLogger(__name__)
BENCHMARK = "benchmark.json"
"""Beside the page: latencies that were measured for it."""


@contextmanager
def evaluation_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A display of how many runs have been evaluated."""
    screen = console(stderr=True)
    columns = (column("evaluating"), BarColumn(24), MofNCompleteColumn(), column("{task.description}"))
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def write_report(
    options: ReportOptions, on_progress: Callable[[int, int, str], None] = lambda done, total, what: None
) -> Path:
    """Write the report of some runs; returns the page's path.

    Raises ValueError when nothing can be evaluated, or when the runs are of different data.
    """
    if options.resamples < 2 or options.epoch < 0:
        raise ValueError(f"resamples={options.resamples}, epoch={options.epoch}: give at least 2, and 0 or more")
    folders = folders_of(options.runs)
    analysis = analyse(folders, options.annotations, options.epoch or None, options.resamples, on_progress)
    known, trouble = _costs(analysis)
    path = options.output / BENCHMARK
    if options.measure:
        write_json(path, measure(analysis))
    latencies = _latencies(path, [arm.label for arm in analysis.arms])
    plans = _plans(options.runs, trouble)
    trouble += [f"{label} was left out: {why}" for plan in plans for label, why in (plan.get("refused") or {}).items()]
    document = make_document(analysis, known, latencies, options, trouble)
    return write(document, options.output)


def folders_of(names: Sequence[str]) -> list[Path]:
    """The runs that folders, folders of runs and patterns name, each once.

    A folder that is no run, and holds none, is kept: that it cannot be read is for the report to name, as it is for a
    run of a comparison that does not exist. Raises ValueError for what does not exist.
    """
    if not names:
        raise ValueError("name runs, folders of runs, or patterns: detr-container report RUN ...")
    found: dict[Path, None] = {}
    for name in names:
        paths = [Path(name)] if Path(name).exists() else [Path(path) for path in sorted(glob.glob(name))]
        if not paths:
            raise ValueError(f"{name} is neither a folder nor a pattern that fits any: name runs' folders")
        for path in paths:
            if path.is_dir():
                found |= dict.fromkeys([*_planned_or_none(path), *runs_in([path])] or [path])
    return list(found)


def plan_of(home: Path) -> dict[str, Any]:
    """A comparison's plan; empty where a folder has none. Raises ValueError or OSError for one that is damaged."""
    path = home / PLAN
    return read_json(path, PlanFile) if path.exists() else {}


def planned_runs(home: Path) -> list[Path]:
    """The folders of a comparison's runs, as they were planned; of any other folder none. Raises as `plan_of`."""
    return [home / name for name in plan_of(home).get("members") or ()]


def _planned_or_none(home: Path) -> list[Path]:
    """The same, none where the plan is damaged: the runs that exist are found without it."""
    try:
        return planned_runs(home)
    except (ValueError, OSError) as error:
        _log.warning("%s. Planned runs that do not exist are not named", error)
        return []


def _plans(names: Sequence[str], trouble: list[str]) -> list[dict[str, Any]]:
    """The plans of comparisons that are given as folders; why one cannot be read goes to `trouble`."""
    found = []
    for name in names:
        try:
            found.append(plan_of(Path(name)))
        except (ValueError, OSError) as error:
            trouble.append(str(error))
    return found


def make_document(
    analysis: Analysis,
    known: Mapping[str, Costs],
    latencies: Mapping[str, Any],
    options: ReportOptions,
    trouble: Sequence[str] = (),
) -> Document:
    """All that the page contains."""
    strides = {arm.label: known[arm.label].strides if arm.label in known else None for arm in analysis.evaluated}
    analysis = replace(analysis, differences=(*of_strides(strides), *analysis.differences))
    pairs = results.pairs_of(analysis)
    warnings = [*results.warnings(analysis), *trouble]
    summary = results.findings(analysis, pairs) or [results.NO_PAIR]
    if _synthetic(analysis):
        summary.append(
            "These runs are on synthetic images of coloured shapes: the metrics show that the machinery works, "
            "and nothing about photographs."
        )
    images = len(analysis.ground.images)
    parts = [
        results.headline(analysis, known),
        replace(results.differences(pairs, images, analysis.resamples), figures=[plots.forest(pairs)] if pairs else []),
        sections.curves(analysis),
        sections.costs(analysis, known, latencies),
        Section("sizes", "By object size", tables=results.by_size(analysis, pairs), figures=[plots.sizes(analysis)]),
        sections.classes(analysis, pairs),
        sections.error_kinds(analysis),
        Section("precision", "Precision and recall", figures=plots.precision_recall(analysis)),
        sections.calibration(analysis),
        sections.images(analysis),
        sections.fairness(analysis.differences),
        results.runs(analysis),
        sections.again(analysis, _commands(options)),
    ]
    count = len(analysis.arms)
    compared = f"{count} detectors compared" if count > 1 else "One detector"
    title = options.title or f"{compared} on {images} images"
    return Document(title, summary, warnings, parts, _data(analysis, known))


def _commands(options: ReportOptions) -> str:
    """What made the comparisons that were given as folders, and what makes the same report of them."""
    noted = [plan.get("command") for plan in _plans(options.runs, [])]
    return "\n".join([*(command for command in noted if command), _command(options)])


def _command(options: ReportOptions) -> str:
    """`report` with every option that is not as it is by default."""
    words = ["detr-container", "report", *options.runs, "--output", str(options.output)]
    for name in ("annotations", "epoch", "resamples", "title"):
        value = getattr(options, name)
        if value != getattr(ReportOptions, name):
            words += [f"--{name}", str(value)]
    return shlex.join([*words, *(["--measure"] if options.measure else [])])


def measure(analysis: Analysis) -> dict[str, Any]:
    """Latencies of all arms' models at their evaluation size, interleaved on this machine."""
    from detr_container.measure.options import MeasureOptions
    from detr_container.measure.side_by_side import side_by_side

    experiments = {arm.label: arm.experiment for arm in analysis.evaluated}
    first = next(iter(experiments.values()))
    sizes = validation_sizes(first, analysis.images)
    largest = max(sizes, key=lambda size: size[0] * size[1])
    options = MeasureOptions(sizes=(largest,), classes=len(analysis.ground.names), training=False)
    return side_by_side(experiments, options, progress=True)


def _costs(analysis: Analysis) -> tuple[dict[str, Costs], list[str]]:
    """What the arms' models cost, and which could not be built."""
    known, trouble = dict[str, Costs](), []
    for arm in analysis.arms:
        experiment = arm.experiment
        try:
            sizes = validation_sizes(experiment, analysis.images)
            known[arm.label] = costs(experiment, len(analysis.ground.names), sizes)
        except (ValueError, RuntimeError, OSError) as error:
            trouble.append(f"{arm.label}: parameters and FLOPs are unknown, its model cannot be built ({error})")
    return known, trouble


def _latencies(path: Path, labels: Sequence[str]) -> dict[str, Any]:
    """What was measured of these arms; a file of another time may be of others, too."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path, BenchmarkFile)
        return {label: one for label, one in content["experiments"].items() if label in labels}
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s): latencies are left out", path, error)
        return {}


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
                "errors": asdict(one.errors),
            }
    return {"runs": runs, "costs": {label: asdict(cost) for label, cost in known.items()}}
