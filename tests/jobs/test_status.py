"""What `status` shows of jobs that have ended, from what they left and what the queue knows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detr_container.base.files import write_json, write_jsonl
from detr_container.jobs.status import RunStatus, _status
from detr_container.launch.queue import Queued

START = {"name": "7-0", "hosts": ["a"], "began": 1.0, "ended": 2.0}
KILLED = {**START, "outcome": "killed", "why": "killed", "action": "started again in 1 s"}
PREEMPTED = {**START, "outcome": "stopped", "why": "preemption", "message": "saved", "action": "started again"}
ERROR = {**START, "outcome": "failed", "why": "error", "message": "no room.", "action": "not started again"}
FAILED = Queued("FAILED", reason="NonZeroExitCode")
GONE = "nobody has started it again since it was"


def status_after(run: Path, history: list[dict[str, Any]], **queue: Queued) -> RunStatus:
    """The status of a job with this history; queue: what Slurm knows of the job, and of the one that watches it."""
    facts = {"submission": str(run), "where": "slurm", "index": 0, "job": "7", "host": "a", "watch": "8"}
    write_json(run / "job" / "job.json", facts)
    write_jsonl(run / "job" / "history.jsonl", history)
    names = {"job": "7", "watch": "8"}
    return _status(run, facts, {names[name]: entry for name, entry in queue.items()}, "", [])


@pytest.mark.parametrize(
    ("history", "queue", "state", "message"),
    [
        ([ERROR], {"job": FAILED}, "failed", "no room. not started again"),
        ([KILLED], {"job": FAILED}, "failed", f"job 7 is FAILED (NonZeroExitCode); {GONE} killed (killed)"),
        ([PREEMPTED], {"job": FAILED}, "failed", f"{GONE} stopped (preemption)"),
        ([KILLED], {}, "lost", f"job 7 is gone; {GONE} killed (killed). `resubmit` resumes from there"),
        ([], {"job": FAILED}, "failed", "it ended before Python began (NonZeroExitCode): see `logs`"),
        ([], {}, "lost", "it ended before Python began: see `logs`"),
        ([KILLED], {"job": FAILED, "watch": Queued("PENDING")}, "queued", "job 7 failed; job 8 starts it again"),
        ([], {"job": FAILED, "watch": Queued("RUNNING")}, "queued", "job 7 failed; job 8 starts it again"),
        ([KILLED], {"job": Queued("PENDING", reason="BeginTime")}, "queued", "BeginTime"),
        ([KILLED], {"job": Queued("CANCELLED"), "watch": Queued("PENDING")}, "cancelled", ""),
        ([KILLED], {"job": FAILED, "watch": Queued("COMPLETED")}, "failed", GONE),
    ],
)
def test_a_job_that_has_ended(
    history: list[dict[str, Any]], queue: dict[str, Queued], state: str, message: str, tmp_path: Path
) -> None:
    found = status_after(tmp_path, history, **queue)
    assert found.state == state
    assert message in found.message


def test_a_cancelled_job_waits_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cancelled").touch()
    assert status_after(tmp_path, [KILLED], job=FAILED, watch=Queued("PENDING")).state == "cancelled"
