"""Waiting for threads that Python cannot join."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from detr_container.base.native_threads import wait_until_asleep

NAME = "tests_own_loop"

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc says what threads do")


class Worker:
    """A thread of this name that computes until it is told to end, for long without Python's lock."""

    def __init__(self, name: str = NAME) -> None:
        self.ended, self._stop, self._started = False, threading.Event(), threading.Event()
        self._name, self._thread = name, threading.Thread(target=self._work)

    def __enter__(self) -> "Worker":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def stop_after(self, seconds: float) -> None:
        threading.Timer(seconds, self._stop.set).start()

    def _work(self) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self._name)
        data = bytes(1 << 26)
        self._started.set()
        while not self._stop.is_set():
            hashlib.sha256(data)
        self.ended = True


def test_it_waits_for_a_thread_that_computes() -> None:
    with Worker() as worker:
        worker.stop_after(0.3)
        wait_until_asleep(NAME, 60)
        assert worker.ended


def test_it_waits_no_longer_than_it_may() -> None:
    with Worker() as worker:
        wait_until_asleep(NAME, 0.1)
        assert not worker.ended


def test_it_waits_for_no_others() -> None:
    with Worker("another_loop") as worker:
        began = time.monotonic()
        wait_until_asleep(NAME, 60)
        assert not worker.ended
        assert time.monotonic() - began < 60
