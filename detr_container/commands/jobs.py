"""The commands about jobs: submit, status, logs, cancel, resubmit, sweep."""

from __future__ import annotations

import contextlib
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table

from detr_container.base.alive import send_signal
from detr_container.base.files import open_regular
from detr_container.base.limits import AtOnce, Many, Seed
from detr_container.base.terminal import console
from detr_container.config.arguments import experiment_first, parse
from detr_container.config.experiments import named, names
from detr_container.config.settings import Experiment
from detr_container.jobs.names import place, place_of_many
from detr_container.launch.attempts import JobFolder
from detr_container.launch.resources import Resources

if TYPE_CHECKING:
    from detr_container.jobs.status import RunStatus

Where = Literal["slurm", "local", "debug"]


@dataclass(frozen=True)
class SubmitOptions:
    """Options of `submit`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    slurm: Resources = field(default_factory=Resources)
    run: str = ""
    """Name of the run and its folder; default: the experiment's. A run resumes from the checkpoint in its folder."""
    runs: Path = Path("runs")
    """The folder that holds the runs."""
    cluster: Where = "slurm"
    """`slurm`; `local`: the same job on this machine, in the background; `debug`: in this process, with a debugger."""
    dry_run: bool = False
    """Print the batch script and submit nothing."""


def submit(arguments: Sequence[str]) -> int:
    """Train an experiment as a Slurm job that survives time limits and preemption: `submit EXPERIMENT`."""
    from detr_container.jobs import submit as jobs

    experiment, rest = experiment_first(arguments, "submit")
    default = SubmitOptions(experiment, jobs.usual_resources())
    options = parse(SubmitOptions, rest, "submit", submit.__doc__, default)
    run = jobs.PlannedRun(place(options.runs, options.run or options.settings.name), options.settings)
    home = run.folder / "job" / "submissions"
    if options.dry_run:
        sys.stdout.write(jobs.dry_run([run], home, options.slurm) + "\n")
        return 0
    submission = jobs.submit([run], home, options.slurm, options.cluster)
    _print_submitted(submission.jobs[0], run.folder, options.slurm, options.cluster)
    return 0


def _print_submitted(job: str, folder: Path, resources: Resources, where: Where) -> None:
    if where == "debug":
        return
    size = f"{resources.nodes} node(s) x {resources.tasks} process(es), {resources.time}"
    kind = f"job {job}{f' in {resources.partition}' if resources.partition else ''}"
    kind = kind if where == "slurm" else f"local job {job}"
    _print(
        f"submitted {kind}, {size}: {folder}",
        f"  detr-container status {folder}          how it is getting on",
        f"  detr-container logs {folder} --follow   what it prints",
        f"  detr-container cancel {folder}          end it, saved; resubmit resumes from there",
    )


def _print(*lines: str) -> None:
    console().print(*lines, sep="\n", soft_wrap=True)


@dataclass(frozen=True)
class StatusOptions:
    """Options of `status`."""

    run: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or folders of runs; none: all runs in `runs`."""


def status(arguments: Sequence[str]) -> int:
    """The status of runs: state, node, steps, metric, restarts and why, time left: `status [RUN ...]`."""
    from detr_container.base.clock import clock, when
    from detr_container.jobs.status import runs_in, statuses_of

    options = parse(StatusOptions, arguments, "status", status.__doc__)
    folders = list(runs_in(options.run or (Path("runs"),)))
    if not folders:
        _print(f"no runs in {', '.join(map(str, options.run)) or 'runs'}")
        return 0
    rows = statuses_of(folders)
    lines: list[dict[str, str]] = [
        {
            "run": str(row.folder),
            "job": row.job,
            "state": row.state,
            "node": row.place,
            "step": f"{row.step}/{row.total or '?'}" if row.step else "",
            "epoch": f"{row.epoch:.1f}/{row.epochs}" if row.step else "",
            **({row.metric.label: row.metric.text(row.value)} if row.metric else {}),
            "restarts": ", ".join(f"{count} {why}" for why, count in row.restarts.items()),
            "left": row.left,
            "ready": f"{when(row.eta)} ({clock(row.eta)})" if row.eta is not None and row.state == "running" else "",
        }
        for row in rows
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = [name for name in _in_order(lines) if any(line.get(name) for line in lines)]
    metrics = {row.metric.label for row in rows if row.metric}
    for name in columns:
        right = name in {"step", "epoch", *metrics}
        wraps = name in ("run", "restarts", "ready")
        table.add_column(name, no_wrap=not wraps, overflow="fold", justify="right" if right else "left")
    for line in lines:
        table.add_row(*(line.get(name, "") for name in columns))
    # Into a file or a pipe, a run is a line.
    console(width=None if sys.stdout.isatty() else 500).print(table)
    for row in rows:
        if row.message and row.message not in row.faults:
            _print(f"{row.folder}: {row.message}")
        for fault in row.faults:
            _print(f"{row.folder}: {fault}")
    if len(rows) == 1 and rows[0].state == "failed":
        errors = folders[0] / "job" / "errors.txt"
        if errors.is_file():
            with open_regular(errors) as file:
                _print(f"\n{errors}:", file.read().decode(errors="replace"))
    return 1 if any(row.faults for row in rows) else 0


def _in_order(rows: Sequence[dict[str, str]]) -> list[str]:
    """The names of all columns; those that only some rows have come after what they follow there."""
    names: list[str] = []
    for row in rows:
        for before, name in zip(("", *row), row, strict=False):
            if name not in names:
                names.insert(names.index(before) + 1 if before else 0, name)
    return names


@dataclass(frozen=True)
class LogsOptions:
    """Options of `logs`."""

    run: tyro.conf.Positional[Path]
    """A run's folder."""
    rank: Many = 0
    """Which process's."""
    follow: bool = False
    """Keep printing until the job has ended; Ctrl-C leaves the job alone."""


def logs(arguments: Sequence[str]) -> int:
    """What a job's process prints, over all its starts: `logs RUN [--rank R] [--follow]`."""
    from detr_container.jobs.status import ACTIVE, started, status_of

    options = parse(LogsOptions, arguments, "logs", logs.__doc__)
    submission, index = started(options.run)
    path = submission.log(index, options.rank)
    ranks = submission.resources.nodes * submission.resources.tasks
    if not 0 <= options.rank < ranks:
        raise ValueError(f"--rank {options.rank}: the job has {ranks} process(es), 0 to {ranks - 1}")
    seen = 0
    while True:
        active = options.follow and status_of(options.run).state in ACTIVE
        if path.exists():
            with open_regular(path) as file:
                file.seek(seen)
                text = file.read()
            seen += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if not active:
            break
        time.sleep(1.0)
    if not seen:
        now = status_of(options.run)
        _print(f"{options.run} has printed nothing yet: it is {now.state}{f' ({now.message})' if now.message else ''}")
    return 0


@dataclass(frozen=True)
class CancelOptions:
    """Options of `cancel`."""

    run: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of runs."""


def cancel(arguments: Sequence[str]) -> int:
    """End runs' jobs; a running one saves first and can be resubmitted: `cancel RUN ...`."""
    from detr_container.jobs.status import runs_in, statuses_of

    options = parse(CancelOptions, arguments, "cancel", cancel.__doc__)
    if not options.run:
        raise ValueError("name what to cancel: detr-container cancel RUN ..., runs' folders or folders of runs")
    failed = []
    for row in statuses_of(list(runs_in(options.run))):
        try:
            _print(_cancel(row))
        except (ValueError, OSError) as error:
            # The others are cancelled all the same.
            failed.append(f"{row.folder} was not cancelled: {error}")
    if failed:
        raise ValueError("; ".join(failed))
    return 0


def _cancel(row: RunStatus) -> str:
    """Cancel one run's job; returns what became of it. Raises ValueError or OSError when that cannot be done."""
    from detr_container.base.files import refuse_links
    from detr_container.engine.run import WRITTEN
    from detr_container.jobs.status import ACTIVE, started
    from detr_container.launch import queue

    job = JobFolder(row.folder)
    facts = job.submission() or {}
    if row.state not in ACTIVE or not row.job:
        why = "it was not submitted: stop its process" if row.state in ACTIVE else f"it is {row.state}"
        return f"{row.folder}: nothing to cancel, {why}"
    submission, _ = started(row.folder)
    submission.refuse_foreign(row.folder)
    refuse_links(row.folder, WRITTEN)
    job.cancelled_path.touch()
    try:
        if submission.where == "local":
            _end_controller(job, int(row.job))
        else:
            queue.ask("scancel", row.job)
            # Who watches it has nothing to wait for.
            if watcher := facts.get("watch"):
                with contextlib.suppress(ValueError):
                    queue.ask("scancel", str(watcher))
    except ValueError:
        job.cancelled_path.unlink(missing_ok=True)
        raise
    return f"{row.folder}: cancelled job {row.job}. `detr-container resubmit {row.folder}` resumes from there"


def _end_controller(job: JobFolder, process: int) -> None:
    """Tell a local job's controller to end. Raises ValueError when it is another machine's."""
    facts = job.submission() or {}
    if facts.get("host") != platform.node():
        raise ValueError(f"{job.run} runs on {facts.get('host')}: cancel it there")
    if not send_signal(process, str(facts.get("process", "")), signal.SIGTERM):
        raise ValueError(f"{job.run}: process {process} is not, or no longer, that of its job; nothing was signalled")


@dataclass(frozen=True)
class ResubmitOptions:
    """Options of `resubmit`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    slurm: Resources = field(default_factory=Resources)
    cluster: Where | None = None
    """Where to run; default: where it ran before."""
    update_code: bool = False
    """Run the code as it is now; otherwise the copy made when the run was first submitted."""


def resubmit(arguments: Sequence[str]) -> int:
    """Resume a run, with a longer schedule or other resources: `resubmit RUN [--train.epochs N] [--slurm...]`."""
    from detr_container.engine.run import Run
    from detr_container.jobs import submit as jobs
    from detr_container.jobs.status import started

    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            shown = ResubmitOptions(named(names()[0]).experiment)
            parse(ResubmitOptions, arguments, "resubmit", resubmit.__doc__, shown)
        raise ValueError("name a run's folder: detr-container resubmit RUN [--train.epochs N] [--slurm.time 48h]")
    folder = Path(arguments[0])
    run = Run(folder)
    experiment = run.experiment()
    if JobFolder(folder).submitted:
        try:
            before, _ = started(folder)
        except ValueError as error:
            kept = folder / "job" / "job.json"
            raise ValueError(f"{error}. Or move {kept} away: then this asks for the usual resources") from error
        before.refuse_foreign(folder)
        default = ResubmitOptions(experiment, before.resources, before.where)
        code: Path | None = Path(before.code)
        workdir: Path | None = Path(before.workdir)
    else:
        # Trained by `train` until now.
        default, code, workdir = ResubmitOptions(experiment, jobs.usual_resources(), "slurm"), None, None
    options = parse(ResubmitOptions, arguments[1:], "resubmit", resubmit.__doc__, default)
    if code is not None and not options.update_code and not code.is_dir():
        _print(f"{code}, the copy of the code that it ran, is gone: it resumes with the code as it is now")
        code = None
    if options.update_code:
        code = None
    resumed = jobs.PlannedRun(folder, options.settings)
    where = options.cluster or "slurm"
    home = folder / "job" / "submissions"
    submission = jobs.submit([resumed], home, options.slurm, where, code=code, workdir=workdir)
    _print_submitted(submission.jobs[0], folder, options.slurm, where)
    return 0


@dataclass(frozen=True)
class SweepOptions:
    """Options of `sweep`."""

    name: tyro.conf.Positional[str]
    """Name of the sweep; its runs are in runs/NAME/."""
    experiments: tuple[str, ...]
    """Named experiments."""
    grid: tuple[str, ...] = ()
    """Settings with the values to try, as train.lr=1e-4,3e-4; every combination is a run."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds; every combination is run with each."""
    set: tuple[str, ...] = ()
    """Settings of all runs: data.root=/data/coco."""
    at_once: AtOnce = 0
    """How many may run at a time; 0: as many as the cluster lets (with --cluster local: one)."""
    slurm: Resources = field(default_factory=Resources)
    runs: Path = Path("runs")
    """The folder that holds the sweep."""
    cluster: Where = "slurm"
    """`slurm` or `local`, as for `submit`."""
    dry_run: bool = False
    """Show what would be submitted, with the batch script, and submit nothing."""


def sweep(arguments: Sequence[str]) -> int:
    """Submit a grid of runs as one array; again: what is missing or has failed: `sweep NAME --experiments ...`."""
    from detr_container.jobs import submit as jobs
    from detr_container.jobs.status import ACTIVE, statuses_of
    from detr_container.jobs.sweep import planned_runs

    default = replace(SweepOptions("", ()), slurm=jobs.usual_resources())
    options = parse(SweepOptions, arguments, "sweep", sweep.__doc__, default)
    if not options.name:
        raise ValueError("name the sweep: detr-container sweep NAME --experiments EXPERIMENT ...")
    home = place_of_many(options.runs, options.name, "the sweep's name")
    runs = planned_runs(home, options.experiments, options.grid, options.seeds, options.set)
    rows = statuses_of([run.folder for run in runs])
    todo, damaged = [], False
    for run, row in zip(runs, rows, strict=True):
        state = row.state if row.state != "no run" else "new"
        if row.state in (*ACTIVE, "finished"):
            _print(f"{run.folder}: {state}, left alone")
            continue
        try:
            jobs.check_folder(run, row)
        except (ValueError, OSError) as error:
            # The others are submitted all the same.
            damaged = True
            _print(f"{run.folder}: {state}, left out: {error}")
        else:
            todo.append(run)
            _print(f"{run.folder}: {state}, to submit")
    if not todo:
        _print("nothing to submit")
        return int(damaged)
    at_once = options.at_once or (1 if options.cluster == "local" else 0)
    if options.dry_run:
        sys.stdout.write(jobs.dry_run(todo, home / "submissions", options.slurm, at_once) + "\n")
        return int(damaged)
    submission = jobs.submit(todo, home / "submissions", options.slurm, options.cluster, at_once=at_once)
    _print(
        f"submitted {len(todo)} of {len(runs)} runs: job {', '.join(submission.jobs)}",
        f"  detr-container status {home}",
        f"  detr-container cancel {home}",
        "  the same command again submits what has failed, and nothing else",
    )
    return int(damaged)
