"""Locks between real processes."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import without_flock

from detr_container.base import lock
from detr_container.base.alive import mark
from detr_container.base.lock import NAME, FolderLock, holder
from detr_container.launch.attempts import HinderedError, JobFolder, RankRecord
from detr_container.launch.settle import Circumstances, pause, settle

HOLD = "import sys, time; from pathlib import Path; from detr_container.base.lock import FolderLock\n"
HOLD += "with FolderLock(Path(sys.argv[1]), sys.argv[2]):\n    print('held', flush=True)\n    time.sleep(60)"


@pytest.fixture
def other(tmp_path: Path, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, as job 7."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "7"]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(repository)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_learns_who_has_it(other: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=rf"run is in use by process {other.pid} on \S+ of job 7, since 20"),
        FolderLock(tmp_path / "run"),
    ):
        pass
    held = holder(tmp_path / "run")
    assert held is not None
    assert held["pid"] == other.pid


def test_a_killed_holder_has_let_go(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(tmp_path / "run") is None
    with FolderLock(tmp_path / "run"):
        held = holder(tmp_path / "run")
        assert held is not None
        assert held["pid"] == os.getpid()


def test_a_restarted_job_waits_for_its_former_self(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_MOMENT", 0.1)
    began = time.monotonic()
    subprocess.Popen(["/bin/sh", "-c", f"sleep 1; kill -KILL {other.pid}"])
    with FolderLock(tmp_path / "run", "7"):
        assert time.monotonic() - began > 0.9


def test_a_job_that_its_former_self_keeps_out_may_try_again(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node is cut off, and the processes on it live on: neither the end of the job nor a fault of the program."""
    monkeypatch.setattr(lock, "_LEASE", 0.1)
    job = JobFolder(tmp_path / "run")
    for number in range(4):
        record = RankRecord(job, f"7-{number}", 0, 1)
        with pytest.raises(
            HinderedError, match=rf"by process {other.pid} on \S+ of job 7, .*, an earlier start of"
        ) as refusal:
            FolderLock(tmp_path / "run", "7").__enter__()
        record.fail(refusal.value)
        attempt, again = settle(job, f"7-{number}", Circumstances(status=2))
        assert (attempt.outcome, attempt.final, attempt.own, again) == ("failed", False, False, True)
    assert pause(job.history()) > 0


def test_nothing_is_left(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new"):
        assert (tmp_path / "new" / NAME).exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with FolderLock(tmp_path / "old"):
        (tmp_path / "old" / "result").touch()
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["result"]


def test_a_folder_that_gets_content_stays(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new"):
        (tmp_path / "new" / "result").touch()
    assert (tmp_path / "new" / "result").exists()


def test_no_lock_is_held_where_there_is_no_folder(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None


def test_a_link_in_the_place_of_the_lock(tmp_path: Path) -> None:
    """Nothing is written through it, nor is it taken for a lock that somebody holds."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"run/\.lock is a symbolic link to .*precious"), FolderLock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
    assert holder(tmp_path / "run") is None


@pytest.fixture
def lockless(tmp_path: Path, repository: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that take the lock as a job, where the kernel answers flock with ENOLCK."""
    if platform.machine() not in without_flock.CALLS or not Path("/proc/self/stat").exists():
        pytest.skip("the filter is for Linux on x86-64 and ARM")
    started = []

    def start(job: str = "") -> subprocess.Popen[str]:
        line = [sys.executable, without_flock.__file__, sys.executable, "-c", HOLD, str(tmp_path / "run"), job]
        surroundings = {**os.environ, "PYTHONPATH": str(repository)}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=surroundings))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def took(process: subprocess.Popen[str]) -> bool:
    """Whether a process got the lock."""
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


def test_without_locks_the_file_counts(lockless: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Of several that start together one gets the folder; a killed holder is overruled; one elsewhere is believed."""
    together = [lockless() for _ in range(4)]
    holders = [process for process in together if took(process)]
    assert len(holders) == 1
    for process in together:
        if process is not holders[0]:
            assert f"is in use by process {holders[0].pid} on" in process.communicate()[1]
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    assert (tmp_path / "run" / NAME).exists()
    again = lockless("7")
    assert took(again)
    assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == again.pid
    again.kill()
    again.wait()
    elsewhere = {"host": "elsewhere", "pid": 1, "process": "x", "job": "7", "since": 0}
    (tmp_path / "run" / NAME).write_text(json.dumps(elsewhere))
    refused = lockless("8")
    assert not took(refused)
    assert "is in use by process 1 on elsewhere of job 7" in (refusal := refused.communicate()[1])
    assert f"if that process has ended, remove {tmp_path / 'run' / NAME}" in refusal
    assert took(lockless("7"))


def test_a_number_that_another_process_has_now(lockless: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """A lock file with the number of a living process that is not the one which wrote it."""
    (tmp_path / "run").mkdir()
    stale = {"host": platform.node(), "pid": os.getpid(), "process": mark(os.getpid()) + "0", "job": "", "since": 0}
    (tmp_path / "run" / NAME).write_text(json.dumps(stale))
    assert took(lockless())
