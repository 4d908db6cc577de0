"""What submitit calls in every process of a job."""

from __future__ import annotations

import logging
import os
import signal
import sys
import zlib
from dataclasses import dataclass

import submitit

from detr_container.base.interrupt import StopRequest

from .attempts import RankRecord
from .settle import settle_lost
from .submission import Submission, Work, attempt_name

HELD_BACK = (signal.SIGTERM, signal.SIGUSR2)
"""Signals that wait, blocked, from a process's first instant until somebody can answer them."""


@dataclass(frozen=True)
class Task:
    """One job's work, with what every process of it does around it: its rank, its signals, and how it ended."""

    work: Work
    submission: Submission
    folder: str

    def __call__(self) -> str:
        """Do the work in this process. Returns how it went; a queued process that was asked to stop exits instead."""
        # It has a handler of its own; through ours it would print everything twice.
        logging.getLogger("submitit").propagate = False
        place = submitit.JobEnvironment()
        name = attempt_name()
        job = self.submission.job_folder(self.folder)
        os.environ.update(rendezvous(place, name))
        record = RankRecord(job, name, place.global_rank, place.num_tasks)
        with StopRequest(usr2=True) as stop:
            # What arrived while Python and its libraries were loading is delivered now, to our own handler.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
            try:
                if place.global_rank == 0:
                    settle_lost(job, name)
                status = self.work(stop)
            except BaseException as error:
                record.fail(error)
                raise
            record.end("finished" if status == 0 else "stopped", stop.requested)
        if status and self.submission.where != "debug":
            # Not returned, because submitit would write a result and take the job for done; not an error, because
            # srun would then kill the processes that are still on their way out.
            sys.stdout.flush()
            sys.stderr.flush()
            sys.exit(0)
        return f"stopped with status {status}" if status else "finished"


def rendezvous(place: submitit.JobEnvironment, name: str) -> dict[str, str]:
    """The variables by which the processes of one start of a job find each other.

    The port follows from the start's name, so that a restarted job never meets what its last start left behind.
    """
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    local_world = max(1, place.num_tasks // place.num_nodes)
    bound = len(visible) == 1 and local_world > 1
    return {
        "MASTER_ADDR": place.hostnames[0] if place.num_nodes > 1 else "127.0.0.1",
        # Below the ports that Linux hands out to outgoing connections.
        "MASTER_PORT": str(20000 + zlib.crc32(name.encode()) % 12000),
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        # A cluster that shows each process its own GPU alone shows it as number 0.
        "LOCAL_RANK": "0" if bound else str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
    }
