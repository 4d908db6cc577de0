"""A report of runs: from their folders to the page."""

from __future__ import annotations

import glob
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress

from detr_container.base.checked import read_json
from detr_container.base.files import write_json
from detr_container.base.terminal import column, console
from detr_container.engine.run import Run
from detr_container.engine.run_files import BenchmarkFile, PlanFile
from detr_container.jobs.status import runs_in
from detr_container.measure.costs import Costs

from .contest import C, Contest, contest_of
from .detectron2.experiment import REFUSAL, is_theirs
from .detectron2.folders import is_output, outputs_in
from .options import PLAN, ReportOptions
from .page import write

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
    contest = contest_of(_task_of(folders))
    contest.check_report(options)
    analysis = contest.analyse(folders, options, on_progress)
    known, trouble = _costs(contest, analysis)
    path = options.output / BENCHMARK
    if options.measure:
        write_json(path, _measured(contest, analysis))
    latencies = _latencies(path, [arm.label for arm in analysis.arms])
    plans = _plans(options.runs, trouble)
    trouble += [f"{label} was left out: {why}" for plan in plans for label, why in (plan.get("refused") or {}).items()]
    return write(contest.document(analysis, known, latencies, options, commands_of(options), trouble), options.output)


def _task_of(folders: Sequence[Path]) -> str:
    """The task of all runs that say theirs; detection of none. Raises ValueError for runs of several."""
    tasks: dict[str, list[str]] = {}
    for folder in folders:
        if is_output(folder):
            tasks.setdefault("detection", []).append(str(folder))
        # What is wrong with a run is named by the report.
        with suppress(ValueError, OSError):
            tasks.setdefault(Run(folder).experiment().task, []).append(str(folder))
    if len(tasks) > 1:
        listed = "; ".join(f"{task}: {', '.join(runs)}" for task, runs in tasks.items())
        raise ValueError(f"these runs are of different tasks, with no metric in common ({listed}): report each alone")
    return next(iter(tasks), "detection")


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
                found |= dict.fromkeys([*_planned_or_none(path), *runs_in([path]), *outputs_in(path)] or [path])
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


def commands_of(options: ReportOptions) -> str:
    """What made the comparisons that were given as folders, and what makes the same report of them."""
    noted = [plan.get("command") for plan in _plans(options.runs, [])]
    return "\n".join([*(command for command in noted if command), _command(options)])


def _command(options: ReportOptions) -> str:
    """`report` with every option that is not as it is by default."""
    words = ["detr-container", "report", *options.runs, "--output", str(options.output)]
    for name in ("annotations", "epoch", "target", "resamples", "title"):
        value = getattr(options, name)
        if value != getattr(ReportOptions, name):
            words += [f"--{name}", str(value)]
    return shlex.join([*words, *(["--measure"] if options.measure else [])])


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


def _measured(contest: Contest[C], analysis: C) -> dict[str, Any]:
    """Latencies of all arms' models at their evaluation size, interleaved on this machine."""
    from detr_container.measure.options import MeasureOptions
    from detr_container.measure.side_by_side import side_by_side

    experiments = {arm.label: arm.experiment for arm in analysis.evaluated if not is_theirs(arm.experiment)}
    if not experiments:
        raise ValueError(f"--measure: there is no model whose speed could be measured ({REFUSAL}); leave it out")
    size, classes = contest.largest(analysis)
    return side_by_side(experiments, MeasureOptions(sizes=(size,), classes=classes, training=False), progress=True)


def _costs(contest: Contest[C], analysis: C) -> tuple[dict[str, Costs], list[str]]:
    """What the arms' models cost, and which could not be built."""
    known, trouble = dict[str, Costs](), []
    for arm in analysis.arms:
        try:
            known[arm.label] = contest.costs(analysis, arm.experiment)
        except (ValueError, RuntimeError, OSError) as error:
            trouble.append(f"{arm.label}: parameters and FLOPs are unknown, its model cannot be built ({error})")
    return known, trouble
