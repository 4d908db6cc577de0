"""Processes and their numbers."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from detr_container.base.alive import mark, send_signal


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def test_a_mark_is_of_one_process() -> None:
    """Two at once, and one that becomes another program."""
    a, b = sleeper(), subprocess.Popen(["/bin/sh", "-c", "read x; exec sleep 60"], stdin=subprocess.PIPE)
    try:
        before = mark(b.pid)
        assert before
        assert mark(a.pid)
        assert b.stdin is not None
        b.stdin.write(b"\n")
        b.stdin.flush()
        while psutil.Process(b.pid).cmdline()[:1] != ["sleep"]:
            time.sleep(0.01)
        assert mark(b.pid) == before
    finally:
        for process in (a, b):
            process.kill()
            process.wait()
    assert mark(a.pid) == ""


def test_an_ended_process_that_waits_for_its_parent_is_none() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert mark(process.pid) == ""
    assert not send_signal(process.pid, "anything", signal.SIGTERM)
    process.wait()


@pytest.mark.parametrize("marked", ["", "another boot:1", "x"])
def test_only_the_process_that_is_meant_gets_the_signal(marked: str) -> None:
    """As where a number was given to another process since."""
    process = sleeper()
    try:
        assert not send_signal(process.pid, marked, signal.SIGTERM)
        assert process.poll() is None
        assert send_signal(process.pid, mark(process.pid), signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [2**22 + 1, 2**40, 10**30])
def test_numbers_that_no_process_has(number: int) -> None:
    assert mark(number) == ""
    assert not send_signal(number, "x", signal.SIGTERM)
