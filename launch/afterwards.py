"""The last line of a batch script: classify how the job's processes ended, and requeue the job if it shall resume.

python -m detr_container.launch.afterwards SUBMISSION STATUS: exits with 0 when the job has finished.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import queue
from .settle import Circumstances, pause, settle
from .submission import Submission, attempt_name

# A limit is reached this many seconds before the lead as well: Slurm sends the signal up to a minute early.
_EARLY = 90


def main(arguments: Sequence[str]) -> int:
    """Called by the batch script, once its `srun` has ended with STATUS."""
    submission = Submission.read(Path(arguments[0]))
    status = int(arguments[1])
    folder = submission.folders[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    job, mine = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    circumstances = circumstances_of(queue.job(job), mine, submission.seconds - submission.resources.lead)
    circumstances = replace(circumstances, status=status)
    attempt, again = settle(submission.job_folder(folder), attempt_name(), circumstances)
    ending = f"{attempt.outcome}{f' ({attempt.why})' if attempt.why else ''}"
    sys.stderr.write(f"start {attempt.name}: {ending}. {attempt.message} {attempt.action}\n")
    sys.stderr.flush()
    if again:
        try:
            queue.start_again(job, pause(submission.job_folder(folder).history()))
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
        return status or 1
    if attempt.outcome == "finished":
        return 0
    if not circumstances.restarted:
        # There is nothing to watch any more.
        watcher = (submission.job_folder(folder).submission() or {}).get("watch")
        if watcher:
            with contextlib.suppress(ValueError):
                queue.ask("scancel", str(watcher))
    return status or 1


def circumstances_of(known: Mapping[str, str], restarts: int, warned_after: float) -> Circumstances:
    """What the fields of `scontrol show job` mean once the job's processes have ended.

    restarts: the job's count when this start was made; warned_after: seconds from a start to the warning of the time
    limit. Slurm reports COMPLETING of a job that is cancelled, out of time or requeued, and RUNNING of one that was
    warned, is in its time of grace, or died: seen alike with Slurm 22.05 and 24.11.
    """
    restarted = int(known.get("Restarts", restarts)) > restarts
    out_of_time = known.get("Reason") == "TimeLimit"
    over = known.get("JobState") in ("CANCELLED", "COMPLETING")
    preempted = known.get("PreemptTime", "None") != "None"
    began = float(os.environ.get("LAUNCH_BEGAN", "inf"))
    return Circumstances(
        limit=out_of_time or (not preempted and not over and time.time() - began >= warned_after - _EARLY),
        cancelled=over and not restarted and not out_of_time,
        restarted=restarted,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
