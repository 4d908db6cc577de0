"""A job that waits for another to fail, and starts it again when nobody else could: its batch script was killed.

python -m detr_container.launch.watch SUBMISSION INDEX JOB: what the watching job runs. Slurm starts it once JOB has
ended other than well, and forgets it when JOB has finished.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import queue
from .attempts import JobFolder
from .settle import Circumstances, pause, settle
from .submission import Submission

_ENDED = ("FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "COMPLETED", "CANCELLED")
_OPTIONS = ("reservation", "clusters")
_COMPLETING = 120


def arm(submission: Submission, index: int) -> None:
    """Queue a job that watches one of a submission's jobs, and write its name where the run keeps its job's.

    It needs a core of the partition for some seconds, and only if the job fails. Raises ValueError with Slurm's own
    words when it refuses.
    """
    resources, job = submission.resources, submission.jobs[index]
    python = shlex.join([sys.executable, "-m", "detr_container.launch.watch", str(submission.folder), str(index), job])
    line = ["sbatch", "--parsable", f"--dependency=afternotok:{job}", "--kill-on-invalid-dep=yes", "--requeue"]
    line += ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--time=5", "--mem=500M", f"--job-name=watch-{job}"]
    line += [f"--output={submission.folder / 'jobs' / f'{job}_watch.out'}", "--open-mode=append"]
    line += [f"--chdir={submission.workdir}"]
    given = {name: getattr(resources, name) for name in ("partition", "account", "qos")}
    given |= {name: str(value) for name, value in resources.options.items() if name in _OPTIONS}
    line += [f"--{name}={value}" for name, value in given.items() if value]
    code = f"PYTHONPATH={shlex.quote(submission.code)}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"
    number = queue.ask(*line, "--wrap", f"{code} {python}").strip().partition(";")[0]
    folder = submission.job_folder(submission.folders[index])
    folder.describe((folder.submission() or {}) | {"watch": number})


def main(arguments: Sequence[str]) -> int:
    """Called in the watching job."""
    submission, index = Submission.read(Path(arguments[0])), int(arguments[1])
    job = arguments[2]
    # What is asked for from here is another job's; this one's own request must not leak into it.
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del os.environ[name]
    folder = submission.job_folder(submission.folders[index])
    if (folder.submission() or {}).get("job") != job:
        _log(f"job {job} is not the run's any more")
        return 0
    known = _ended(job)
    if not known:
        _log(f"Slurm has forgotten job {job} (MinJobAge): resubmit the run")
        return 1
    if known["JobState"] not in _ENDED:
        _log(f"job {job} is {known['JobState']}: somebody has started it again")
    elif must_restart(folder, known):
        queue.start_again(job, pause(folder.history()))
        _log(f"job {job} was {known['JobState']}: started again")
    else:
        _log(f"job {job} was {known['JobState']}: it stays so")
        return 0
    arm(submission, index)
    return 0


def must_restart(folder: JobFolder, known: dict[str, str]) -> bool:
    """Whether a job that has ended so shall be started again; its last start is settled if nobody has.

    known: the fields of `scontrol show job`.
    """
    name, state = f"{known['JobId']}-{known.get('Restarts', '0')}", known["JobState"]
    settled = next((attempt for attempt in folder.history() if attempt.name == name), None)
    if settled is None:
        circumstances = Circumstances(
            limit=state == "TIMEOUT",
            cancelled=state == "CANCELLED",
            memory=state == "OUT_OF_MEMORY",
            batch=state not in ("TIMEOUT", "CANCELLED", "OUT_OF_MEMORY"),
        )
        return settle(folder, name, circumstances)[1]
    # Its batch script was killed after that start was settled and before what was to follow.
    restart = settled.action.startswith("started again")
    return restart and state not in ("CANCELLED", "COMPLETED") and not folder.cancelled_path.exists()


def _ended(job: str) -> dict[str, str]:
    """What Slurm knows of a job, once it has left its nodes."""
    end = time.monotonic() + _COMPLETING
    while (known := queue.job(job)) and known["JobState"] == "COMPLETING" and time.monotonic() < end:
        time.sleep(1.0)
    return known


def _log(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
