"""How often the kernel has killed a process here for want of memory."""

from __future__ import annotations

from pathlib import Path


def oom_kills() -> int | None:
    """The count of this Slurm job's control group where there is one (cgroup v2), else of the machine; None: unknown.

    Read twice on one machine by processes of one job, it tells whether memory ran out in between.
    """
    for path, name in ((_job_events(), "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        try:
            counts = dict(line.split() for line in path.read_text().splitlines()) if path else {}
            return int(counts[name])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _job_events() -> Path | None:
    """`memory.events` of the job's control group, which counts those of all its steps, ended ones included."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    parts = next((Path(line[3:]).parts for line in lines if line.startswith("0::")), ())
    for place, part in enumerate(parts):
        if part.startswith("job_"):
            return Path("/sys/fs/cgroup", *parts[1 : place + 1], "memory.events")
    return None
