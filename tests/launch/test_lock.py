"""Locks between real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detr_container.launch import lock
from detr_container.launch.lock import NAME, FolderLock, holder

HOLD = "import sys, time; from pathlib import Path; from detr_container.launch.lock import FolderLock\n"
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


def test_a_second_process_is_told_who_has_it(other: subprocess.Popen[str], tmp_path: Path) -> None:
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
