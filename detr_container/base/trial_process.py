"""Another process, for what may take too much memory: the system ends who asks for more than there is.

What is tried there had better not end the one that has to report it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from .interrupt import StopRequest

KILLED = 128 + signal.SIGKILL
"""With what such a process says by itself that memory did not suffice."""


def run_trial(
    command: Sequence[str],
    request: Mapping[str, Any],
    log: Path,
    room: float,
    stop: StopRequest,
    environ: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Let a process work until it ends, has more than `room` bytes of memory, or a stop is requested.

    request: what it reads from standard input, as a line of JSON. Returns its exit status, as `ran_out` reads it, and
    the lines that it printed, which `log` keeps. Raises InterruptedError on a request to stop: as an exception an
    interrupt could come between the start of the process and the care for it.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, 0, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environ
        ) as process,
    ):
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):
                # Left open: that it closes lets the other process know that this one is gone.
                process.stdin.write(json.dumps(request).encode() + b"\n")
            _wait(process, room, stop)
        finally:
            process.kill()
            process.wait()
    if stop.requested is not None:
        raise InterruptedError(stop.requested)
    return process.returncode, log.read_text(errors="replace").splitlines()


def _wait(process: subprocess.Popen[bytes], room: float, stop: StopRequest) -> None:
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(process.pid)
        while process.poll() is None and stop.requested is None:
            if other.memory_info().rss > room:
                process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


def ran_out(status: int) -> bool:
    """Whether a process ended for want of memory."""
    return status in (-signal.SIGKILL, KILLED)


def read_request() -> dict[str, Any]:
    """In the other process: what it shall try. From now on it ends with who started it, and is the first to go."""
    _first_to_go()
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return request


def _first_to_go() -> None:
    """Be the process that the system ends when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def free_memory() -> int:
    """Bytes that can still be taken on this machine, of what this process may take at most."""
    return int(min(psutil.virtual_memory().available, *cgroup_limits(), sys.maxsize))


def cgroup_limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that this process's control groups let it have, as Slurm and containers set them; old and new kind."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            # Where there is no limit the file says `max`; where a container shows only its own groups there is none.
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text())
            if folder == top:
                break
