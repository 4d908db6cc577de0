"""Threads of this process that Python has not started and cannot join."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_MOMENT = 0.002
"""Seconds between two looks, in which Python's lock is free for whoever waits for it."""


def wait_until_asleep(name: str, most: float) -> None:
    """Wait, at most so many seconds, until all threads of a name have nothing to do; without /proc not at all."""
    until, quiet = time.monotonic() + most, 0
    # Who waits for Python's lock sleeps as well, and has had it by the second look.
    while quiet < 2 and time.monotonic() < until:
        quiet = 0 if "R" in _states(name) else quiet + 1
        time.sleep(_MOMENT)


def _states(name: str) -> set[str]:
    """What the threads of a name do, as Linux has it: R for those that run or could."""
    found = set()
    for path in Path("/proc/self/task").glob("*/stat"):
        # A thread may end meanwhile.
        with suppress(OSError):
            before, _, after = path.read_text(errors="replace").rpartition(")")
            if before.partition("(")[2] == name:
                found.add(after.split()[0])
    return found
