"""What a cluster does to a job: each interruption of a run on two nodes, and what becomes of the start it meets."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
from slurm_cluster import Cluster

from detr_container.base.files import read_jsonl


def preempt(slurm: Cluster, job: str, run: Path) -> None:
    """A job of a higher partition wants all CPUs of both nodes for a moment."""
    slurm.run("sbatch", "-p", "high", "-N2", "--ntasks-per-node=1", "-c4", "-o", "/dev/null", "--wrap", "sleep 2")


def requeue(slurm: Cluster, job: str, run: Path) -> None:
    """As an administrator does."""
    slurm.run("scontrol", "requeue", job)


def processes(run: Path) -> list[int]:
    """The process of each rank, in a run's only start."""
    (folder,) = (run / "job" / "attempts").iterdir()
    return [read_jsonl(path)[0]["pid"] for path in sorted(folder.glob("rank-*.jsonl"))]


def kill_a_process(slurm: Cluster, job: str, run: Path) -> None:
    """Rank 1 alone, as the out-of-memory killer would."""
    os.kill(processes(run)[1], signal.SIGKILL)


def kill_all(slurm: Cluster, job: str, run: Path) -> None:
    """Every rank."""
    for process in processes(run):
        os.kill(process, signal.SIGKILL)


def kill_the_batch_script(slurm: Cluster, job: str, run: Path) -> None:
    """Nobody is left who could ask for a requeue."""
    slurm.run("scancel", "--batch", "--signal=KILL", job)


def drain_a_node(slurm: Cluster, job: str, run: Path) -> None:
    """An administrator takes a node down; Slurm warns the processes, and requeues the job itself."""
    slurm.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")


def to_all(processes: list[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    """Do something to all processes that are still there."""
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(each)


def lose_the_nodes(slurm: Cluster, job: str, run: Path) -> None:
    """As when the power fails: nothing of the job, its batch script included, lives to hear of it."""
    # Other processes of the machine come and go meanwhile; of those that have gone there is no command line.
    everybody = psutil.process_iter(["cmdline"])
    victims = [each for each in everybody if f"[{job}." in " ".join(each.info["cmdline"] or [])]
    assert victims, "no slurmstepd"
    for each in list(victims):
        with contextlib.suppress(psutil.NoSuchProcess):
            victims += each.children(recursive=True)
    to_all(victims, psutil.Process.suspend)
    drain_a_node(slurm, job, run)
    to_all(victims, psutil.Process.kill)


INTERRUPTIONS = [
    (preempt, "stopped", "preemption"),
    (requeue, "stopped", "requeued"),
    (kill_a_process, "killed", "killed"),
    (kill_all, "killed", "killed"),
    (kill_the_batch_script, "stopped", "batch script killed"),
    (drain_a_node, "stopped", "requeued"),
    (lose_the_nodes, "killed", "node failure, or requeued without warning"),
]
"""Each with the outcome of the start that it ends, and the reason that is found for it."""
