"""Slurm, asked: which partitions there are, what became of a job, and what a request could never get."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .resources import Resources, minutes

_LOCAL_ONLY = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_SECONDS = 60


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it. state: PENDING, RUNNING, ...; reason: why it waits; left: its time left."""

    state: str
    nodes: str = ""
    reason: str = ""
    left: str = ""
    start: str = ""


@dataclass(frozen=True)
class Partition:
    """A partition. gpus: most GPUs on one of its nodes; limit: its time limit in minutes, None without one."""

    name: str
    default: bool
    nodes: int
    cpus: int
    gpus: int
    limit: int | None


def ask(*command: str) -> str:
    """What a command of Slurm prints. Raises ValueError with its own message when it fails."""
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"there is no {command[0]} on this machine: submit from a login node of the cluster, or use --cluster local"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{command[0]} did not answer within {_SECONDS} s: is Slurm's controller down?") from error
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def fields_of(line: str) -> dict[str, str]:
    """The `Name=value` pairs of one line of `scontrol --oneliner`."""
    return dict(pair.partition("=")[::2] for pair in line.split() if "=" in pair)


def job(name: str) -> dict[str, str]:
    """What `scontrol show job` knows of a job; empty when it has forgotten it."""
    for _ in range(10):
        try:
            return fields_of(ask("scontrol", "show", "job", "--oneliner", name).splitlines()[0])
        except (ValueError, IndexError):
            # For an instant after a requeue there is no answer.
            time.sleep(0.3)
    return {}


def start_again(name: str, pause: float) -> None:
    """Put a job that runs, or has ended, back into the queue, not to begin for so many seconds.

    Raises ValueError with Slurm's own words when it refuses.
    """
    ask("scontrol", "requeue", name)
    if pause:
        # A job that is still on its way out of its nodes takes this as well.
        with contextlib.suppress(ValueError):
            ask("scontrol", "update", f"JobId={name}", f"StartTime=now+{pause:.0f}")


def queued(names: Iterable[str]) -> dict[str, Queued]:
    """The jobs of these names that the queue still shows, those that ended a while ago included."""
    asked_for = set(names)
    if not asked_for:
        return {}
    form = "%i|%T|%N|%r|%L|%S"
    mains = ",".join(sorted({name.partition("_")[0] for name in asked_for}))
    command = ("squeue", "--noheader", "--array", "--states=all", f"--format={form}")
    try:
        text = ask(*command, f"--jobs={mains}")
    except ValueError as error:
        # One that is forgotten makes the whole question fail.
        if "Invalid job id" not in str(error):
            raise
        text = ask(*command, "--me")
    found = {}
    for line in text.splitlines():
        name, state, nodes, reason, left, start = (part.strip() for part in line.split("|"))
        if name in asked_for:
            found[name] = Queued(state, nodes, reason, left, start)
    return found


def partitions() -> list[Partition]:
    """All partitions of the cluster."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%G|%l|%P").splitlines():
        name, nodes, cpus, gres, limit, shown = line.split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:(,]+)*:(\d+)", gres))
        other = found.get(name)
        found[name] = Partition(
            name,
            shown.endswith("*"),
            int(nodes) + (other.nodes if other else 0),
            max(int(cpus.rstrip("+")), other.cpus if other else 0),
            max(gpus, other.gpus if other else 0),
            None if limit in ("infinite", "n/a") else minutes(limit),
        )
    return list(found.values())


def check_request(resources: Resources, paths: Sequence[Path]) -> None:
    """Raise ValueError for what this cluster cannot give: a partition, nodes, GPUs, time, or a folder nodes cannot see.

    paths: folders and files that the job reads or writes.
    """
    every = {partition.name: partition for partition in partitions()}
    for name in resources.partition.split(",") if resources.partition else _defaults(every):
        if name not in every:
            raise ValueError(f"slurm.partition={name}: this cluster has {', '.join(every)}")
        has = every[name]
        if resources.nodes > has.nodes:
            raise ValueError(f"slurm.nodes={resources.nodes}: partition {name} has {has.nodes}")
        if resources.gpus_per_node > has.gpus:
            most = f"at most {has.gpus} GPU(s) on a node" if has.gpus else "no GPUs (to train on CPUs, ask for 0)"
            raise ValueError(f"slurm.gpus-per-node={resources.gpus_per_node}: partition {name} has {most}")
        if resources.tasks * max(1, resources.cpus_per_task) > has.cpus:
            raise ValueError(
                f"{resources.tasks} processes with slurm.cpus-per-task={resources.cpus_per_task} on each node: the "
                f"nodes of partition {name} have {has.cpus} CPUs"
            )
        if has.limit is not None and minutes(resources.time) > has.limit:
            raise ValueError(
                f"slurm.time={resources.time}: partition {name} allows {has.limit} minutes. Ask for that: the run "
                "resumes in as many jobs as it needs"
            )
    _check_seen(resources, paths)


def _defaults(every: dict[str, Partition]) -> list[str]:
    names = [name for name, partition in every.items() if partition.default]
    if not names:
        raise ValueError(f"this cluster has no default partition: give --slurm.partition, one of {', '.join(every)}")
    return names


def _check_seen(resources: Resources, paths: Sequence[Path]) -> None:
    """Refuse folders that the nodes certainly, or by the group's own list, do not see."""
    for path in (Path(os.path.realpath(path)) for path in paths):
        if resources.shared:
            if not any(path.is_relative_to(os.path.realpath(folder)) for folder in resources.shared):
                listed = ", ".join(resources.shared)
                raise ValueError(f"{path} is not in a folder that the nodes see (slurm.shared={listed}): move it there")
            continue
        kind = _file_system(path)
        if (kind in ("tmpfs", "ramfs") or any(path.is_relative_to(folder) for folder in _LOCAL_ONLY)) and _elsewhere():
            raise ValueError(
                f"{path} is on this machine alone ({kind}), so the nodes of the job cannot see it: choose a folder "
                "that they share, or list what they see in slurm.shared"
            )


def _elsewhere() -> bool:
    """Whether any node of the cluster is another machine than this."""
    hosts = {fields_of(line).get("NodeHostName") for line in ask("scontrol", "show", "node", "--oneliner").splitlines()}
    return bool(hosts - {platform.node(), platform.node().partition(".")[0]})


def _file_system(path: Path) -> str:
    """The type of the file system that holds, or will hold, a path."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
