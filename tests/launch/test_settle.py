"""The verdict on every way a start can end, from the files that its processes leave."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detr_container.base.files import read_jsonl
from detr_container.base.lock import FolderLock
from detr_container.launch.attempts import JobFolder, RankRecord, fruitless
from detr_container.launch.settle import DEATHS, KILLS, Circumstances, pause, settle, settle_lost


def start(job: JobFolder, name: str, *ends: str | BaseException, world: int = 0) -> None:
    """A start whose ranks end as given: an outcome, an error, a signal's name, or `died`."""
    for rank, end in enumerate(ends):
        record = RankRecord(job, name, rank, world or len(ends))
        if isinstance(end, BaseException):
            record.fail(end)
        elif end.startswith("SIG"):
            record.end("stopped", end)
        elif end == "stopped":
            record.end("stopped", None)
        elif end != "died":
            record.end("finished")


def progress(job: JobFolder, step: int) -> None:
    """The run writes a checkpoint."""
    (job.run / f"checkpoint-{step:04d}").touch()


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path, "checkpoint-*")


PEER = ConnectionError("another process has ended")


@pytest.mark.parametrize(
    ("ends", "circumstances", "outcome", "why", "again"),
    [
        (["finished", "finished"], Circumstances(), "finished", "", False),
        (["finished"], Circumstances(limit=True), "finished", "", False),
        (["SIGUSR2", "stopped"], Circumstances(), "stopped", "preemption", True),
        (["stopped", "SIGTERM"], Circumstances(limit=True), "stopped", "time limit", True),
        (["SIGTERM"], Circumstances(cancelled=True), "stopped", "cancelled", False),
        (["SIGINT"], Circumstances(), "stopped", "cancelled", False),
        (["SIGTERM"], Circumstances(restarted=True), "stopped", "requeued", True),
        (["died", PEER], Circumstances(), "killed", "killed", True),
        (["died", "died"], Circumstances(limit=True), "killed", "time limit", True),
        (["died"], Circumstances(cancelled=True), "killed", "cancelled", False),
        ([PEER, RuntimeError("out of memory")], Circumstances(), "failed", "error", True),
        ([ValueError("train.lr=-1"), PEER], Circumstances(), "failed", "error", False),
        ([FloatingPointError("NaN")], Circumstances(), "failed", "error", False),
        ([OSError(28, "no space")], Circumstances(), "failed", "error", False),
        ([OSError(5, "input/output error")], Circumstances(), "failed", "error", True),
        (["died"], Circumstances(memory=True), "killed", "out of memory", True),
        (["died", "SIGTERM"], Circumstances(batch=True), "killed", "batch script killed", True),
        (["SIGTERM", "SIGTERM"], Circumstances(batch=True), "stopped", "batch script killed", True),
        (["died", "died"], Circumstances(restarted=True), "killed", "requeued", True),
        ([PEER, PEER], Circumstances(), "failed", "error", True),
        ([], Circumstances(status=1), "killed", "error", True),
        ([], Circumstances(status=139), "killed", "error", True),
        ([], Circumstances(status=137), "killed", "killed", True),
        ([], Circumstances(batch=True), "killed", "batch script killed", True),
        ([], Circumstances(restarted=True, status=143), "killed", "requeued", True),
        ([], Circumstances(cancelled=True), "killed", "cancelled", False),
    ],
)
def test_verdicts(
    ends: list[str | BaseException], circumstances: Circumstances, outcome: str, why: str, again: bool, job: JobFolder
) -> None:
    start(job, "1-0", *ends)
    attempt, restart = settle(job, "1-0", circumstances)
    assert (attempt.outcome, attempt.why) == (outcome, why)
    # What the scheduler does by itself is left to it.
    assert restart == (again and not circumstances.restarted)
    assert job.history() == [attempt]


def test_the_cause_is_named_before_its_consequences(job: JobFolder) -> None:
    try:
        raise RuntimeError("device-side assert")
    except RuntimeError as error:
        start(job, "1-0", PEER, PEER, error)
    attempt, _ = settle(job, "1-0", Circumstances())
    assert attempt.message.startswith("rank 2 on ")
    assert attempt.message.endswith("RuntimeError: device-side assert")
    errors = job.errors_path.read_text()
    assert errors.index("RuntimeError: device-side assert") < errors.index("noticed that another process had ended")
    assert "test_settle.py" in errors


def test_a_rank_that_never_began_is_counted(job: JobFolder) -> None:
    start(job, "1-0", PEER, world=4)
    attempt, _ = settle(job, "1-0", Circumstances())
    assert attempt.outcome == "killed"
    assert attempt.message == "3 process(es) never began."


@pytest.mark.parametrize(
    ("end", "circumstances"),
    [
        (RuntimeError("out of memory"), Circumstances(status=1)),
        ("died", Circumstances(status=139)),
        ("died", Circumstances(memory=True)),
    ],
    ids=["an error", "a crash", "no memory"],
)
def test_three_deaths_of_its_own_making_are_enough(
    end: str | BaseException, circumstances: Circumstances, job: JobFolder
) -> None:
    for number in range(DEATHS):
        start(job, f"1-{number}", end)
        attempt, again = settle(job, f"1-{number}", circumstances)
        assert again == (number < DEATHS - 1)
    assert attempt.action == "not started again: it died 3 times in a row without getting on"
    assert job.errors_path.exists()


def test_kills_from_outside_get_many_tries_with_longer_and_longer_pauses(job: JobFolder) -> None:
    """Whatever else comes between them, and whether or not Python had begun."""
    pauses = []
    for number in range(KILLS):
        again = settle(job, f"1-{number}", Circumstances(status=137))[1] if number % 2 else None
        if again is None:
            start(job, f"1-{number}", "died", PEER)
            again = settle(job, f"1-{number}", Circumstances(status=137))[1]
        assert again == (number < KILLS - 1), number
        pauses.append(pause(job.history()))
    assert pauses[:4] == [0, 5, 10, 20]
    assert pauses[-1] == 600
    assert (
        job.history()[-1].action
        == "not started again: it was killed from outside 50 times in a row before it could save"
    )
    assert fruitless(job.history()) == 0


def test_a_stop_that_was_answered_ends_a_row_of_kills(job: JobFolder) -> None:
    """The machines work: what follows a preemption need not wait, though nothing has got on."""
    pauses = []
    for number, end in enumerate(["died", "died", "died", "SIGTERM", "died", "died"]):
        start(job, f"1-{number}", end)
        settle(job, f"1-{number}", Circumstances(status=137))
        pauses.append(pause(job.history()))
    assert pauses == [0, 5, 10, 0, 0, 5]


def test_a_crash_is_distinguished_from_a_kill(job: JobFolder) -> None:
    """By what Python itself writes when it gets a signal that only a fault of the program sends."""
    code = "import os, sys; from pathlib import Path; from detr_container.launch.attempts import *; "
    code += "RankRecord(JobFolder(Path(sys.argv[1])), sys.argv[2], 0, 1); os.kill(os.getpid(), int(sys.argv[2]))"
    found = {}
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL):
        name = str(int(number))
        done = subprocess.run([sys.executable, "-c", code, str(job.run), name], capture_output=True, check=False)
        assert done.returncode == -number
        attempt, _ = settle(job, name, Circumstances())
        found[number] = (attempt.why, attempt.own)
    assert found == {
        signal.SIGSEGV: ("crashed", True),
        signal.SIGABRT: ("crashed", True),
        signal.SIGKILL: ("killed", False),
    }


def test_a_process_that_nccl_ends_has_lost_another(job: JobFolder) -> None:
    """Its watchdog calls `abort` in a thread that Python does not know, here as there."""
    code = "import ctypes, os, sys, time; from pathlib import Path; from detr_container.launch.attempts import *\n"
    code += "RankRecord(JobFolder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), 2); c = ctypes.CDLL(None)\n"
    code += "c.pthread_create(ctypes.byref(ctypes.c_ulong()), None, c.abort, None); time.sleep(60)"
    found = {}
    for name, ranks in (("both", (0, 1)), ("killed", (1,)), ("failed", (1,)), ("crashed", (1,))):
        for rank in ranks:
            command = [sys.executable, "-c", code, str(job.run), name, str(rank)]
            assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGABRT
        if name == "failed":
            RankRecord(job, name, 0, 2).fail(RuntimeError("device-side assert"))
        elif name in ("killed", "crashed"):
            record = RankRecord(job, name, 0, 2)
            if name == "crashed":
                record.path.with_suffix(".crash").write_text("Fatal Python error: Segmentation fault\n")
        attempt, again = settle(job, name, Circumstances(status=128 + signal.SIGABRT))
        found[name] = (attempt.why, attempt.own, attempt.message.partition(" on ")[0], again)
        assert ("ended by NCCL" in attempt.message) == (name == "both")
    assert found == {
        "both": ("killed", False, "rank 0", True),
        "killed": ("killed", False, "rank 0", True),
        "failed": ("error", True, "rank 0", True),
        "crashed": ("crashed", True, "rank 0", True),
    }


def test_memory_that_ran_out_since_a_process_began(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_container.launch.attempts.oom_kills", lambda: 4)
    start(job, "1-0", "died")
    monkeypatch.setattr("detr_container.launch.settle.oom_kills", lambda: 5)
    attempt, again = settle(job, "1-0", Circumstances(status=137))
    assert (attempt.why, attempt.own, again) == ("out of memory", True, True)
    assert "because memory ran out" in attempt.message


def test_what_killed_processes_leave_is_removed_and_nothing_else(job: JobFolder) -> None:
    """At the next start, and when there is none: what the last holder of the lock was writing."""
    for take in (lambda: FolderLock(job.run).__enter__(), lambda: settle(job, "1-0", Circumstances(cancelled=True))):
        (job.run / ".lock").write_text(json.dumps({"host": "h", "pid": 4711, "job": "", "since": 1.0}))
        mine = [job.run / ".a.png.4711-0a1b2c3d.tmp", job.run / "detections" / ".b.4711-0a1b2c3d.tmp"]
        others = [job.run / ".a.png.4712-0a1b2c3d.tmp", job.run / ".mine.4711.tmp", job.run / "a.4711-0a1b2c3d.tmp"]
        for path in [*mine, *others]:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        held = take()
        assert not any(path.exists() for path in mine)
        assert all(path.exists() for path in others)
        if isinstance(held, FolderLock):
            held.__exit__(None, None, None)
        assert not (job.run / ".lock").exists()


def test_a_run_that_gets_on_may_die_as_often_as_it_likes(job: JobFolder) -> None:
    for number in range(10):
        start(job, f"1-{number}", "died")
        progress(job, number)
        assert settle(job, f"1-{number}", Circumstances())[1]


def test_preemption_neither_counts_as_a_death_nor_forgives_one(job: JobFolder) -> None:
    error = RuntimeError("out of memory")
    ends = [error, "SIGTERM", "SIGTERM", error, "SIGTERM", error]
    restarts = []
    for number, end in enumerate(ends):
        start(job, f"1-{number}", end)
        restarts.append(settle(job, f"1-{number}", Circumstances())[1])
    assert restarts == [True, True, True, True, True, False]
    assert fruitless(job.history()) == 3


def test_starts_that_nobody_settled(job: JobFolder) -> None:
    """The machine died with its batch script."""
    start(job, "1-0", "died", "died")
    progress(job, 1)
    start(job, "1-1", "died", "died")
    settle_lost(job, "1-1")
    (attempt,) = job.history()
    assert (attempt.name, attempt.outcome, attempt.why) == (
        "1-0",
        "killed",
        "node failure, or requeued without warning",
    )
    settle_lost(job, "1-1")
    assert len(job.history()) == 1


def test_the_fourth_start_after_three_lost_ones_is_refused(job: JobFolder) -> None:
    for number in range(DEATHS):
        start(job, f"1-{number}", RuntimeError("out of memory"))
        if number:
            settle_lost(job, f"1-{number}")
    start(job, "1-3", "died")
    with pytest.raises(ValueError, match=r"is not started again: it died 3 times in a row without getting on"):
        settle_lost(job, "1-3")


def test_a_record_cut_short_is_read_as_far_as_it_goes(job: JobFolder) -> None:
    start(job, "1-0", "finished")
    path = next(job.folder.glob("attempts/1-0/*"))
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_jsonl(path)) == 1
    assert settle(job, "1-0", Circumstances())[0].outcome == "killed"
