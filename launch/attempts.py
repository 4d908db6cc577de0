"""What every start of a job leaves behind, so that the next start, and the person, know how it ended.

In the folder of a job that was submitted:

job/job.json                              the submission it belongs to, and its name in the queue
job/attempts/<job>-<restart>/rank-N.jsonl   one file per process: a line when it began, a line when it ended
job/history.jsonl                         one line per start that has ended: how, why, and what was done about it
job/attempts/<job>-<restart>/rank-N.crash   what Python prints of a crash (a segmentation fault, an abort) of it
job/errors.txt                            what went wrong in the last start that failed, on all processes
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import platform
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from detr_container.base.checked import PathText, Schema, mistakes, read_json, read_lines
from detr_container.base.files import JsonLines, write_json
from detr_container.base.lock import HinderedError, Seconds

from .oom import oom_kills

Outcome = Literal["finished", "stopped", "failed", "killed", "resubmitted"]
"""`resubmitted` is no start: a person has asked for another, so that what came before no longer counts."""
_log = logging.getLogger(__name__)
# What trying again does not fix.
_FINAL = (ValueError, FloatingPointError, FileNotFoundError, PermissionError)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Attempt:
    """One start of a job that has ended.

    evidence_before, evidence_after: the newest file that shows progress, when it began and when it ended.
    final: whether trying again would fail in the same way. own: whether a death is of the program's own making (an
    error, a crash, memory that ran out) rather than a kill from outside.
    """

    name: str
    hosts: list[str]
    began: float
    ended: float
    outcome: Outcome
    why: str
    message: str = ""
    final: bool = False
    evidence_before: str = ""
    evidence_after: str = ""
    action: str = ""
    own: bool = True


JobName = Annotated[str, Field(pattern=r"^(DEBUG_)?[0-9]{1,19}(_[0-9]{1,9})?$")]
"""Slurm's number, with its place in an array; a process id; what submitit's debug executor makes up."""


class JobFile(Schema):
    """job.json."""

    submission: PathText
    where: Literal["slurm", "local", "debug"]
    index: Annotated[int, Field(ge=0, le=10**6)]
    job: JobName
    host: str = ""
    process: str = ""
    watch: JobName | None = None


class HistoryLine(Schema):
    """A line of history.jsonl."""

    name: str
    hosts: list[str]
    began: Seconds
    ended: Seconds
    outcome: Outcome
    why: str
    message: str = ""
    final: bool = False
    evidence_before: str = ""
    evidence_after: str = ""
    action: str = ""
    own: bool = True


class RankFile(Schema):
    """The lines of rank-N.jsonl, merged."""

    rank: Annotated[int, Field(ge=0)]
    world: Annotated[int, Field(ge=1)]
    host: str
    pid: int
    began: Seconds
    evidence: str
    ended: Seconds | None = None
    outcome: Outcome | None = None
    signal: str | None = None
    error: str = ""
    traceback: str = ""
    final: bool = False
    secondary: bool = False
    hindered: bool = False


class JobFolder:
    """The part of a run's folder that launching owns. evidence: a pattern of files that a run which gets on writes."""

    def __init__(self, run: Path, evidence: str = "") -> None:
        self.run, self._pattern = run, evidence
        self.folder = run / "job"
        self.history_path = self.folder / "history.jsonl"
        self.errors_path = self.folder / "errors.txt"
        self.cancelled_path = self.folder / "cancelled"

    def describe(self, facts: dict[str, Any]) -> None:
        """Remember a submission."""
        write_json(self.folder / "job.json", facts)

    def submission(self) -> dict[str, Any] | None:
        """What `describe` wrote last, or None when the run was never submitted. ValueError for what is no such file."""
        return read_json(self.folder / "job.json", JobFile) if self.submitted else None

    @property
    def submitted(self) -> bool:
        """Whether the run was submitted."""
        return (self.folder / "job.json").exists()

    def history(self, faults: list[str] | None = None) -> list[Attempt]:
        """All starts that have ended, oldest first; faults: see `read_lines`. Without it, what is wrong is logged."""
        if not self.history_path.exists():
            return []
        wrong = faults if faults is not None else list[str]()
        known = {field.name for field in fields(Attempt)}
        rows = read_lines(self.history_path, HistoryLine, wrong)
        for fault in wrong if faults is None else ():
            _log.warning("%s", fault)
        return [Attempt(**{name: value for name, value in row.items() if name in known}) for row in rows]

    def remember(self, attempt: Attempt) -> None:
        """Add a start to the history."""
        with JsonLines(self.history_path) as lines:
            lines.append(asdict(attempt))

    def evidence(self) -> str:
        """The newest file that shows progress, by name; empty when there is none."""
        return max((path.name for path in self.run.glob(self._pattern)), default="") if self._pattern else ""

    def ranks(self, attempt: str) -> list[dict[str, Any]]:
        """What each process of a start wrote, its lines merged, in order of rank."""
        found = []
        for path in sorted((self.folder / "attempts" / attempt).glob("rank-*.jsonl")):
            merged: dict[str, Any] = {}
            wrong: list[str] = []
            for line in read_lines(path, Schema, wrong):
                merged |= line
            if merged:
                crash = path.with_suffix(".crash")
                merged["crash"] = crash.read_text(errors="replace") if crash.exists() else ""
            if merged and (reason := mistakes(merged, RankFile)):
                wrong.append(f"{path}: {reason}")
            elif merged:
                found.append(merged)
            for fault in wrong:
                _log.warning("%s", fault)
        return found

    def unsettled(self, current: str) -> list[str]:
        """Starts before the current one that nobody has settled, oldest first: their machine died with them."""
        known = {attempt.name for attempt in self.history()} | {current}
        folders = sorted((self.folder / "attempts").glob("*"), key=lambda path: path.stat().st_mtime)
        return [path.name for path in folders if path.name not in known]


class RankRecord:
    """The file of one process of one start; a line is appended, never rewritten, which NFS shows to others at once."""

    def __init__(self, job: JobFolder, attempt: str, rank: int, world: int) -> None:
        self.path = job.folder / "attempts" / attempt / f"rank-{rank:05d}.jsonl"
        self._append(
            {
                "rank": rank,
                "world": world,
                "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
                "pid": os.getpid(),
                "began": time.time(),
                "evidence": job.evidence(),
                "oom": oom_kills(),
            }
        )
        self._before = faulthandler.is_enabled()
        with contextlib.suppress(OSError):
            # Unbuffered, and open as long as the process lives: what is in it shows that the process crashed.
            self._crash = self.path.with_suffix(".crash").open("w")
            faulthandler.enable(self._crash)

    def end(self, outcome: Outcome, signal: str | None = None) -> None:
        """The process has finished, or stopped because of a signal, with all its work saved."""
        self._append({"ended": time.time(), "outcome": outcome, "signal": signal})
        self._close()

    def fail(self, error: BaseException) -> None:
        """The process ends with an error."""
        full = isinstance(error, OSError) and error.errno in _NO_ROOM
        self._append(
            {
                "ended": time.time(),
                "outcome": "failed",
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
                "final": full or isinstance(error, _FINAL),
                # One that only noticed the end of another is not the one to read.
                "secondary": isinstance(error, ConnectionError),
                "hindered": isinstance(error, HinderedError),
                "oom_after": oom_kills(),
            }
        )
        self._close()

    def _close(self) -> None:
        """No crash is to be reported any more."""
        faulthandler.disable()
        if self._before:
            faulthandler.enable()

    def _append(self, record: dict[str, Any]) -> None:
        # A full disk must not hide the error that is being reported.
        with contextlib.suppress(OSError), JsonLines(self.path) as lines:
            lines.append(record)


def fruitless(history: Sequence[Attempt], own: bool = True) -> int:
    """How many of the last starts, one after another, died without getting on. Preempted ones do not count.

    own: count deaths of the program's own making; False: kills from outside, of which a stop that was answered ends the
    row, for it shows that the machines work.
    """
    count, ends = 0, ("finished", "resubmitted") if own else ("finished", "resubmitted", "stopped")
    for attempt in reversed(history):
        if attempt.outcome in ends or attempt.evidence_after != attempt.evidence_before:
            break
        count += attempt.outcome in ("failed", "killed") and attempt.own is own
    return count
