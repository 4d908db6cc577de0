"""A process of two: runs a list of jobs one after the other, each in a process group of its own.

Importing torch costs far more than training for eight steps, so the tests of two ranks share one pair of processes.
Usage: two_ranks.py JOBS.json RANK, where a job is {"do": "train" | "evaluate", "port": ..., ...}.
With "recorded": true, training records its steps and replays them, on a tape as a GPU does in graphs.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from runs import train_in
from tape import Tape

from detr_container.commands import cli
from detr_container.config.settings import from_dict
from detr_container.engine import step


def main() -> None:
    jobs, rank = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    torch.set_num_threads(1)
    for job in jobs:
        os.environ.update(
            RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"])
        )
        if job["do"] == "train":
            with pytest.MonkeyPatch.context() as patch:
                if job.get("recorded"):
                    patch.setattr(step, "why_eager", lambda *_: "")
                    patch.setattr(step, "CudaRecorder", lambda device: Tape())
                status = train_in(Path(job["folder"]), from_dict(job["experiment"]))
        else:
            status = cli.main(job["arguments"])
        if status != job.get("status", 0):
            raise SystemExit(f"{job} ended with status {status}")


if __name__ == "__main__":
    main()
