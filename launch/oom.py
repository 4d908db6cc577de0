"""How often the kernel has killed a process of ours for want of memory."""

from __future__ import annotations

import os
from pathlib import Path

_MINE = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> int | None:
    """The count of this process's control group (cgroup v2), in a Slurm job the job's; None: unknown.

    Read twice on one machine by processes of one job, it shows whether memory ran out in between. What the kernel
    counts for the whole machine would not: that may be another person's process.
    """
    try:
        counts = dict(line.split() for line in _events().read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def _events() -> Path:
    """`memory.events` of the control group, which counts those of all groups in it, ended ones included.

    Raises FileNotFoundError where a Slurm job has no group of its own: it shares one with other people's jobs.
    """
    lines = _MINE.read_text().splitlines()
    parts = next((Path(line[3:]).parts[1:] for line in lines if line.startswith("0::")), None)
    if parts is None:
        raise FileNotFoundError("no control group of version 2")
    if "SLURM_JOB_ID" in os.environ:
        job = next((place for place, part in enumerate(parts) if part.startswith("job_")), None)
        if job is None:
            raise FileNotFoundError("no control group of the job")
        parts = parts[: job + 1]
    return _GROUPS.joinpath(*parts, "memory.events")
