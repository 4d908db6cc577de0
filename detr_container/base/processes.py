"""Which of the processes of a distributed job this one is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

_log = logging.getLogger(__name__)
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MASTER = ("MASTER_ADDR", "MASTER_PORT")
_COUNTS = ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK")
_REMEDY = (
    "Start with `torchrun --nproc-per-node N -m -- detr_container ...`, which sets "
    f"{', '.join(_RANKS + _MASTER)}, or unset them all to run one process"
)


@dataclass(frozen=True)
class ProcessInfo:
    """One process among others.

    rank: 0 .. world - 1 over all machines; local_rank: from 0 on this machine (its GPU); world: number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def current_process(environ: Mapping[str, str]) -> ProcessInfo:
    """Find this process's place according to torchrun's variables, or a single process where they are not set.

    Slurm's own variables do not make a job distributed: an interactive allocation sets them too, and joining a group
    on their account would wait for processes that were never started.
    Raises ValueError when only some of torchrun's variables are set, when they contradict each other, or when a count
    that goes with them is none: before anything waits for the other processes.
    """
    if not any(environ.get(name) for name in _RANKS):
        _warn_of_lonely_tasks(environ)
        return ProcessInfo()
    missing = [name for name in _RANKS + _MASTER if not environ.get(name)]
    if missing:
        present = ", ".join(f"{name}={environ[name]}" for name in _RANKS + _MASTER if environ.get(name))
        raise ValueError(f"{present} set without {', '.join(missing)}: all five belong together. {_REMEDY}")
    rank, local_rank, world = (_whole_number(environ, name) for name in _RANKS)
    port = _whole_number(environ, "MASTER_PORT")
    for name in _COUNTS:
        count(environ, name)
    if world < 1 or rank >= world:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world}: ranks go from 0 to WORLD_SIZE - 1. {_REMEDY}")
    if local_rank > rank:
        raise ValueError(
            f"LOCAL_RANK={local_rank} and RANK={rank}: a rank on one machine is never the larger. {_REMEDY}"
        )
    if not 0 < port < 65536:
        raise ValueError(f"MASTER_PORT={port}: ports go from 1 to 65535. {_REMEDY}")
    return ProcessInfo(rank, local_rank, world)


def count(environ: Mapping[str, str], name: str) -> int:
    """The number in a variable that may be absent; 0 where it is. Raises ValueError when it holds something else."""
    if not environ.get(name):
        return 0
    text = environ[name].strip()
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9):
        raise ValueError(f"{name}={environ[name]!r}: a whole number from 1 is needed. Correct it, or unset it")
    return int(text)


def _whole_number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}={environ[name]!r}: a whole number from 0 is needed. {_REMEDY}")
    return int(text)


def _warn_of_lonely_tasks(environ: Mapping[str, str]) -> None:
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdigit() and int(tasks) > 1:
        _log.warning(
            "this is one of %s tasks of a Slurm step, but torchrun's variables are not set: each task runs alone and "
            "none knows of the others. %s",
            tasks,
            _REMEDY,
        )


def environment_of_one(at_once: int) -> dict[str, str]:
    """The environment of a process that trains, `at_once` of them together: each has its share of the cores."""
    # Threads of several runs that wait for each other's cores are slower than fewer of them.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // at_once))
    return {**os.environ, "OMP_NUM_THREADS": threads}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
