"""Submitting jobs through submitit: to Slurm, to this machine in the background, or into this very process."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.slurm.slurm import _make_sbatch_string

from .attempts import Attempt, JobFolder
from .local import LocalExecutor
from .resources import unprintable
from .settle import Circumstances, settle
from .submission import ATTEMPT, Submission, Work
from .task import HELD_BACK, Task
from .watch import arm

_log = logging.getLogger(__name__)
_AFTERWARDS = "detr_container.launch.afterwards"


def submit(submission: Submission, works: Sequence[Work], name: str, at_once: int = 0) -> Submission:
    """Submit one job per run folder of a submission; returns it with the names of its jobs.

    works: what each job's processes call, in the order of `submission.folders`. at_once: how many jobs may run at a
    time; 0: as many as the cluster lets. On `debug` the work is done when this returns.
    Raises ValueError with Slurm's own words when it refuses.
    """
    submission.resources.validate()
    submission.write()
    tasks = [Task(work, submission, folder) for work, folder in zip(works, submission.folders, strict=True)]
    executor = _executor(submission, name, at_once or len(tasks))
    for folder in submission.folders:
        _begin_anew(submission.job_folder(folder))
    with clean_env(), _slurm_conf(os.environ.get("SLURM_CONF")):
        try:
            jobs = [executor.submit(tasks[0])] if len(tasks) == 1 else executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise ValueError(f"Slurm refused the job: {_last_words(error)}") from error
    submission = replace(submission, jobs=[job.job_id for job in jobs])
    submission.write()
    submission.write_to_runs()
    if submission.where == "slurm":
        with clean_env(), _slurm_conf(os.environ.get("SLURM_CONF")):
            _watch(submission)
    if submission.where == "debug":
        _run_in_this_process(submission, jobs)
    return submission


def _watch(submission: Submission) -> None:
    """Have every job watched, or warn what that means where the cluster does not let it."""
    for index, job in enumerate(submission.jobs):
        try:
            arm(submission, index)
        except ValueError as error:
            _log.warning(
                "job %s runs, but no second job may wait beside it (%s): should its batch script itself be killed, "
                "start the run again by `resubmit`",
                job,
                _last_words(error),
            )
            return


def script(submission: Submission, name: str, jobs: int = 1, at_once: int = 0) -> str:
    """The batch script that would be submitted."""
    parameters = slurm_parameters(submission, name, at_once or jobs)
    command = f"{_python()} -u -m submitit.core._submit {shlex.quote(str(submission.folder / 'jobs'))}"
    if jobs > 1:
        parameters["map_count"] = jobs
    return _make_sbatch_string(command=command, folder=submission.folder / "jobs", **parameters)


def slurm_parameters(submission: Submission, name: str, at_once: int) -> dict[str, Any]:
    """A submission's request, and what surrounds it, in submitit's terms."""
    resources = submission.resources
    _check_script(submission, name)
    code, python = shlex.quote(submission.code), shlex.quote(sys.executable)
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": submission.seconds // 60,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks,
        "signal_delay_s": resources.lead,
        "array_parallelism": at_once,
        "stderr_to_stdout": True,
        # One process that dies takes the others with it, which would wait for it until the time limit.
        "srun_args": ["--kill-on-bad-exit=1"],
        "setup": [
            *resources.setup,
            # The copied code comes before whatever is installed, and before the folder the job runs in.
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1",
            f"export {ATTEMPT}=$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}} LAUNCH_BEGAN=$(date +%s)",
            "# this shell outlives the signals that end the job, to see how it ended and to requeue it",
            "trap : TERM USR2",
            "# srun ends with this shell, should that be killed",
            "if setpriv --pdeath-signal KILL true 2>/dev/null; then",
            '  srun() { setpriv --pdeath-signal KILL srun "$@"; }',
            "fi",
        ],
        "teardown": [
            "status=$?",
            f"{python} -m {_AFTERWARDS} {shlex.quote(str(submission.folder))} $status",
            "exit $?",
        ],
        "additional_parameters": {"requeue": True, "chdir": submission.workdir, **resources.options},
    }
    for key in ("partition", "account", "qos", "constraint", "mem", "gpus_per_node"):
        if getattr(resources, key):
            parameters[key] = getattr(resources, key)
    if resources.cpus_per_task:
        parameters["cpus_per_task"] = resources.cpus_per_task
        # srun has not taken this from the job since Slurm 22.05.
        parameters["srun_args"].append(f"--cpus-per-task={resources.cpus_per_task}")
    return parameters


def _check_script(submission: Submission, name: str) -> None:
    """Raise ValueError for names that a batch script cannot hold: it has a line for each, and Slurm replaces signs."""
    submission.resources.validate()
    paths = {
        "the folder that the job runs in": submission.workdir,
        "the folder of the submission": str(submission.folder),
        "the folder of the code": submission.code,
        "the path of Python": sys.executable,
    }
    for what, text in {"the job's name": name, **paths}.items():
        if unprintable(text):
            raise ValueError(
                f"{what} is {text!r}: a line break, or another control character, cannot stand in a batch script. "
                "Rename it"
            )
    for what, text in list(paths.items())[:2]:
        if "%" in text or "\\" in text:
            raise ValueError(f"{what} is {text}: Slurm gives % and \\ in a path a meaning of its own. Rename it")


def _executor(submission: Submission, name: str, at_once: int) -> submitit.core.core.Executor:
    folder = submission.folder / "jobs"
    if submission.where == "debug":
        return submitit.DebugExecutor(folder)
    if submission.where == "local":
        local = LocalExecutor(folder, python=_python(), submission=submission, at_once=at_once)
        local.update_parameters(tasks_per_node=submission.resources.tasks, setup=list(submission.resources.setup))
        return local
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "there is no sbatch on this machine: submit from a login node of the cluster, or use --cluster local "
            "(the same job on this machine) or --cluster debug (in this process)"
        )
    slurm = submitit.SlurmExecutor(folder, python=_python())
    slurm.update_parameters(**slurm_parameters(submission, name, at_once))
    return slurm


def _python() -> str:
    """The command for Python, with the signals that end a job held back until somebody can answer them."""
    python = shlex.quote(sys.executable)
    names = ",".join(number.name.removeprefix("SIG") for number in HELD_BACK)
    try:
        subprocess.run(["env", f"--block-signal={names}", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        # An old `env`. A signal during the start then ends the process, which is requeued and has lost nothing.
        return python
    return f"env --block-signal={names} {python}"


@contextmanager
def _slurm_conf(value: str | None) -> Iterator[None]:
    """Keep the one variable of Slurm that is the cluster's rather than a job's."""
    if value is not None:
        os.environ["SLURM_CONF"] = value
    yield


def _run_in_this_process(submission: Submission, jobs: Sequence[submitit.Job[str]]) -> None:
    """Do the work of debug jobs, one after the other, in this process; the debugger opens on an error."""
    for job, folder in zip(jobs, submission.folders, strict=True):
        os.environ |= {ATTEMPT: f"{job.job_id}-0", "SUBMITIT_DEBUG_JOB_ID": job.job_id}
        try:
            if sys.stdin.isatty():
                job.results()
            else:
                job.submission().result()
        finally:
            del os.environ["SUBMITIT_DEBUG_JOB_ID"]
            settle(submission.job_folder(folder), os.environ.pop(ATTEMPT), Circumstances(cancelled=True))


def _begin_anew(job: JobFolder) -> None:
    """A person submits a run again: what it died of before no longer counts, nor that it was cancelled."""
    job.cancelled_path.unlink(missing_ok=True)
    if job.history():
        now = time.time()
        job.remember(Attempt("", [], now, now, "resubmitted", "by hand"))


def _last_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no reason given"
    )
