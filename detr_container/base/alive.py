"""Whether a process is still the one that it was: its number alone may long be another's."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(pid: int) -> str:
    """What sets a living process apart from any other that has had, or will have, its number; empty when there is none.

    On Linux the machine's boot and the clock tick of the start, which no change of the clock moves. One that has ended
    and waits for its parent is none. A program that takes the place of another (exec) keeps it.
    """
    try:
        # After the name in brackets, which may hold anything: state, parent, ...; the start is the 22nd of all.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{_BOOT.read_text().strip()}:{fields[19]}"
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.create_time():.2f}"
    return ""


def send_signal(pid: int, marked: str, number: signal.Signals) -> bool:
    """Send a signal to the process with this mark; False, and nothing is sent, when there is no such process."""
    if not marked:
        return False
    if not hasattr(os, "pidfd_open"):
        if mark(pid) != marked:
            return False
        os.kill(pid, number)
        return True
    try:
        # Once it is open, it stands for one process, whoever has the number later.
        handle = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return False
    try:
        if mark(pid) != marked:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True
