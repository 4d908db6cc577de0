"""Waiting for threads that Python cannot join."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from detr_container.base.native_threads import wait_until_asleep

NAME = "tests_own_loop"
LONG = 30.0
"""Seconds that a thread computes which is not waited for."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="only Linux tells what threads do (/proc), and elsewhere nobody waits"
)


class Worker:
    """A thread of this name that computes for so many seconds, for long without Python's lock."""

    def __init__(self, name: str, lasts: float) -> None:
        self.ended, self._stop, self._started = False, threading.Event(), threading.Event()
        self._name, self._lasts, self._thread = name, lasts, threading.Thread(target=self._work)

    def __enter__(self) -> "Worker":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self._name)
        data, until = bytes(1 << 26), time.monotonic() + self._lasts
        self._started.set()
        while not self._stop.is_set() and time.monotonic() < until:
            hashlib.sha256(data)
        self.ended = True


def test_it_waits_for_a_thread_that_computes() -> None:
    with Worker(NAME, 0.3) as worker:
        wait_until_asleep(NAME, 2 * LONG)
        assert worker.ended


def test_it_waits_no_longer_than_it_may() -> None:
    with Worker(NAME, LONG) as worker:
        wait_until_asleep(NAME, 0.1)
        assert not worker.ended


def test_it_waits_for_no_others() -> None:
    with Worker("another_loop", LONG) as worker:
        wait_until_asleep(NAME, 2 * LONG)
        assert not worker.ended
