"""The status of a run: queued, running, stopped, finished; how far it is, and how often it had to start again."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from detr_container.base.alive import mark
from detr_container.base.lock import holder
from detr_container.config.settings import Metric
from detr_container.engine.run import Run
from detr_container.launch import queue
from detr_container.launch.attempts import Attempt, JobFolder
from detr_container.launch.queue import Queued
from detr_container.launch.submission import Submission

_YEARS = 10 * 365 * 86400.0
"""Seconds; what would take longer is no estimate."""
ACTIVE = ("queued", "starting", "running")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "REQUEUE_FED")
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING")


@dataclass(frozen=True)
class RunStatus:
    """One run. total, epochs: of how many, None where unknown; whole: nothing is left to do; eta: seconds.

    metric, value: the headline metric of its task and what the last evaluation found.
    """

    folder: Path
    state: str
    job: str = ""
    place: str = ""
    step: int = 0
    total: int | None = None
    epoch: float = 0.0
    epochs: int | None = None
    metric: Metric | None = None
    value: float | None = None
    restarts: Counter[str] = field(default_factory=Counter)
    left: str = ""
    eta: float | None = None
    whole: bool = False
    message: str = ""
    faults: tuple[str, ...] = ()
    """What of its files cannot be read, a sentence each."""

    @property
    def score(self) -> str:
        """The headline metric in words: "AP 34.1"; empty before the first evaluation."""
        return f"{self.metric.label} {self.metric.text(self.value)}" if self.metric and self.value is not None else ""


def status_of(folder: Path) -> RunStatus:
    """The status of one run."""
    return statuses_of([folder])[0]


def statuses_of(folders: Sequence[Path]) -> list[RunStatus]:
    """The status of several runs, the queue asked once for all of them."""
    unread: dict[Path, list[str]] = {folder: [] for folder in folders}
    submissions = {folder: _submission(folder, unread[folder]) for folder in folders}
    slurm = [facts for facts in submissions.values() if facts and facts["where"] == "slurm"]
    names = [facts[key] for facts in slurm for key in ("job", "watch") if facts.get(key)]
    try:
        queued, silent = queue.queued(names), ""
    except ValueError as error:
        queued, silent = {}, str(error)
    found = []
    for folder in folders:
        try:
            found.append(_status(folder, submissions[folder], queued, silent, unread[folder]))
        except (ValueError, OSError) as error:
            found.append(RunStatus(folder, "unreadable", message=str(error), faults=(str(error),)))
    return found


def _submission(folder: Path, faults: list[str]) -> dict[str, Any] | None:
    try:
        return JobFolder(folder).submission()
    except (ValueError, OSError) as error:
        faults.append(str(error))
        return None


def _status(
    folder: Path, facts: dict[str, Any] | None, queued: dict[str, Queued], silent: str, faults: list[str]
) -> RunStatus:
    history = JobFolder(folder).history(faults)
    known = _progress(folder, faults)
    owner = holder(folder)
    job = facts["job"] if facts else ""
    common: dict[str, Any] = {**known, "folder": folder, "job": job, "restarts": _restarts(history)}
    common["faults"] = tuple(faults)
    last = history[-1] if history else None
    message = last.message if last and last.outcome in ("failed", "killed") else ""
    entry = _local(folder, facts) if facts and facts["where"] == "local" else queued.get(job)
    if entry and entry.state in _WAITING:
        reason = f"{entry.reason}; {message}" if message and entry.reason else entry.reason or message
        return RunStatus(**common, state="queued", message=reason)
    if entry and entry.state in _RUNNING:
        state = "running" if known["step"] or owner else "starting"
        return RunStatus(**common, state=state, place=entry.nodes, left=entry.left, message=message)
    watch = facts.get("watch", "") if facts else ""
    watcher = queued.get(watch)
    if watcher and watcher.state in _WAITING + _RUNNING and not _is_over(folder, entry):
        return RunStatus(**common, state="queued", message=f"job {job} failed; job {watch} starts it again")
    if owner is not None:
        place = f"{owner.get('host', '')} (process {owner.get('pid', '?')})"
        return RunStatus(**common, state="running", place=place)
    common["eta"] = None
    if known["whole"]:
        return RunStatus(**common, state="finished")
    if facts and silent:
        return RunStatus(**common, state="unknown", message=silent)
    return RunStatus(**common, state=_ended(folder, facts, last, entry), message=_message(facts, last, entry, message))


def _is_over(folder: Path, entry: Queued | None) -> bool:
    """Whether a job that has left the queue was meant to."""
    return JobFolder(folder).cancelled_path.exists() or entry is None or entry.state in ("CANCELLED", "COMPLETED")


def _ended(folder: Path, facts: dict[str, Any] | None, last: Attempt | None, entry: Queued | None) -> str:
    """The state of a run that neither runs nor waits."""
    if facts is None:
        if JobFolder(folder).submitted:
            # By a job of which nothing can be read.
            return "unknown"
        return "stopped" if Run(folder).exists else "no run"
    if JobFolder(folder).cancelled_path.exists() or (entry and entry.state == "CANCELLED"):
        return "cancelled"
    if last is None or last.outcome == "resubmitted":
        return "lost" if entry is None or entry.state == "COMPLETED" else entry.state.lower()
    if last.outcome == "finished":
        return "finished"
    if last.action.startswith("started again"):
        # That was the wish; but the job neither runs nor waits.
        return "lost" if entry is None or entry.state == "COMPLETED" else "failed"
    return "stopped" if last.outcome == "stopped" else "failed"


def _message(facts: dict[str, Any] | None, last: Attempt | None, entry: Queued | None, message: str) -> str:
    if last is not None and last.action.startswith("started again"):
        became = f"is {entry.state} ({entry.reason})" if entry else "is gone"
        why = f"{last.outcome}{f' ({last.why})' if last.why else ''}"
        job = facts["job"] if facts else ""
        return f"job {job} {became}; nobody has started it again since it was {why}. `resubmit` resumes from there"
    if last is not None and last.action and last.outcome != "finished":
        return f"{last.message} {last.action}" if last.outcome != "stopped" else last.message
    if facts and last is None and not message:
        return f"it ended before Python began{f' ({entry.reason})' if entry and entry.reason else ''}: see `logs`"
    return message


def _restarts(history: Sequence[Attempt]) -> Counter[str]:
    """Why the run was started again, how often."""
    return Counter(attempt.why for attempt in history if attempt.action.startswith("started again"))


def _local(folder: Path, facts: dict[str, Any]) -> Queued | None:
    """The state of a job of the local executor, whose name is its controller's process id on its machine."""
    if facts.get("host") != platform.node():
        return None
    try:
        if facts.get("process") and mark(int(facts["job"])) != facts["process"]:
            return None
        process = psutil.Process(int(facts["job"]))
        # Within a line of the shell, as long as that sets things up.
        if "detr_container.launch.local" not in _command_line(process) or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except (psutil.Error, ValueError):
        return None
    working = bool(process.children())
    return Queued("RUNNING", platform.node()) if working else Queued("PENDING", "", "waits for its turn")


def _command_line(process: psutil.Process) -> str:
    """A process's command; while one program takes the place of another, as a shell's `exec` has it, there is none."""
    for _ in range(20):
        if words := process.cmdline():
            return " ".join(words)
        time.sleep(0.01)
    return ""


def _lines(read: Callable[[list[str]], list[dict[str, Any]]], faults: list[str]) -> list[dict[str, Any]]:
    try:
        return read(faults)
    except (ValueError, OSError) as error:
        faults.append(str(error))
        return []


def _progress(folder: Path, faults: list[str]) -> dict[str, Any]:
    """Steps, epochs, metric, and the seconds that the rest takes at the recent pace; faults: see `read_lines`."""
    run = Run(folder)
    known: dict[str, Any] = {"step": 0, "total": None, "epoch": 0.0, "epochs": None, "eta": None}
    known["whole"] = False
    try:
        experiment = run.experiment()
    except (ValueError, OSError) as error:
        if run.exists:
            faults.append(str(error))
        return known
    rows, evaluations = (_lines(read, faults) for read in (run.metrics, run.evaluations))
    settings = experiment.train
    known |= {"epochs": settings.epochs, "metric": experiment.metrics[0]}
    if evaluations:
        known["value"] = evaluations[-1].get(known["metric"].key)
    if not rows:
        return known
    last = rows[-1]
    per_epoch = max(1, round(last["step"] / last["epoch"]))
    total = per_epoch * settings.epochs
    rates = [row["images_per_second"] for row in rows[-5:] if row.get("images_per_second")]
    seconds = (total - last["step"]) * settings.batch / (sum(rates) / len(rates)) if rates else None
    if seconds is not None and not 0 <= seconds < _YEARS:
        seconds = None
    # One that was ended during its last evaluation has that still to do.
    evaluated = not settings.eval_every or (bool(evaluations) and evaluations[-1]["epoch"] >= settings.epochs)
    whole = last["step"] >= total and evaluated
    return {**known, "step": last["step"], "total": total, "epoch": last["epoch"], "eta": seconds, "whole": whole}


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, was submitted to become one, or has lost its configuration."""
    run = Run(folder)
    return run.exists or JobFolder(folder).submitted or run.metrics_path.exists()


def started(folder: Path) -> tuple[Submission, int]:
    """The submission that a run belongs to, and its place in it. Raises ValueError when it was never submitted."""
    facts = JobFolder(folder).submission()
    if facts is None:
        raise ValueError(f"{folder} was not submitted: it has no job/job.json. `submit` or `resubmit` does that")
    submission, index = Submission.read(Path(facts["submission"])), facts["index"]
    if index >= min(len(submission.jobs), len(submission.folders)):
        raise ValueError(f"{folder} is job {index} of {facts['submission']}, which has fewer: submit the run again")
    return submission, index


def runs_in(paths: Sequence[Path]) -> Iterator[Path]:
    """The runs that are, or lie in, the given folders. Raises ValueError for a path that is no folder."""
    for path in paths:
        if is_run(path):
            yield path
        elif not path.is_dir():
            if path != Path("runs"):
                raise ValueError(f"{path} is not a run's folder, nor one that holds runs: there is no such folder")
        else:
            for found in sorted(path.iterdir()):
                if found.is_dir() and not found.is_symlink() and found.name != "submissions":
                    yield from runs_in([found]) if is_run(found) or _holds_runs(found) else ()


def _holds_runs(folder: Path) -> bool:
    return any(is_run(path) for path in folder.iterdir() if path.is_dir())
