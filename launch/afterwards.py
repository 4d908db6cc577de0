"""The last line of a batch script: judge how the job's processes ended, and requeue the job if it shall go on.

python -m detr_container.launch.afterwards SUBMISSION STATUS: exits with 0 when the job has finished.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import queue
from .settle import Circumstances, settle
from .submission import Submission, attempt_name

# A limit is reached this many seconds before the lead as well: Slurm sends the signal up to a minute early.
_EARLY = 90


def main(arguments: Sequence[str]) -> int:
    """Called by the batch script, once its `srun` has ended with STATUS."""
    submission = Submission.read(Path(arguments[0]))
    status = int(arguments[1])
    folder = submission.folders[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    job, mine = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    known = queue.job(job)
    began = float(os.environ.get("LAUNCH_BEGAN", "0")) or time.time()
    late = time.time() - began >= submission.seconds - submission.resources.lead - _EARLY
    around = Circumstances(
        limit=known.get("JobState") == "TIMEOUT" or late,
        cancelled=known.get("JobState") == "CANCELLED",
        restarted=int(known.get("Restarts", mine)) > mine,
    )
    attempt, again = settle(submission.job_folder(folder), attempt_name(), around)
    said = f"{attempt.outcome}{f' ({attempt.why})' if attempt.why else ''}"
    sys.stderr.write(f"start {attempt.name}: {said}. {attempt.message} {attempt.action}\n")
    sys.stderr.flush()
    if again:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"scontrol requeue {job} failed: {done.stderr.strip()}\n")
        return status or 1
    return 0 if attempt.outcome == "finished" else status or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
