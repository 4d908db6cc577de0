"""Jobs on this machine, in the background: submitit's local executor, with the rules by which Slurm jobs resume.

python -m detr_container.launch.local FOLDER runs one job: what the executor starts.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import submitit
from submitit.local import local

from .gpus import VARIABLE, claimed
from .settle import Circumstances, pause, settle
from .submission import ATTEMPT, Submission
from .task import HELD_BACK

_INDEX, _AT_ONCE = "LAUNCH_INDEX", "LAUNCH_AT_ONCE"
# What Slurm, too, gives the others when a process has died, and all of them when their time is up.
_GRACE = 10.0
_KILL_WAIT = 30.0
_POLL = 0.05
_KILLED = (0, 128 + signal.SIGKILL, 128 + signal.SIGTERM)


class LocalExecutor(submitit.LocalExecutor):
    """submitit's, with a controller that starts a job again as often as it takes."""

    def __init__(self, folder: Path, python: str, submission: Submission, at_once: int) -> None:
        super().__init__(folder, python=python)
        self._submission, self._at_once, self._started = submission, at_once, 0

    def _submit_command(self, command: str) -> local.LocalJob[Any]:
        submission = self._submission
        environment = {
            **os.environ,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(submission.resources.tasks),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(submission.seconds),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(submission.resources.lead),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [submission.code, os.environ.get("PYTHONPATH")])),
            "PYTHONSAFEPATH": "1",
            # The copy of the code stays as it was made.
            "PYTHONDONTWRITEBYTECODE": "1",
            _INDEX: str(self._started),
            _AT_ONCE: str(self._at_once),
        }
        start = shlex.join([sys.executable, "-m", "detr_container.launch.local", str(self.folder)])
        # Each on lines of its own, so that a remark at the end of one hides no other.
        shell = "\n".join([*(f"{{ {line}\n}} || exit" for line in submission.resources.setup), f"exec {start}"])
        log = self.folder / f"controller-{self._started}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", shell],
                env=environment,
                cwd=submission.workdir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The job outlives the terminal, and Ctrl-C in it.
                start_new_session=True,
            )
        self._started += 1
        return local.LocalJob(self.folder, str(process.pid), tasks=range(submission.resources.tasks), process=process)


class Controller(local.Controller):
    """One job: starts its processes, warns them of the time limit, and starts them again until it is done.

    SIGTERM cancels the job; SIGUSR2 is passed on, which is what a preemption looks like to the processes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.submission = Submission.read(folder.parent)
        self.job = self.submission.job_folder(self.submission.folders[int(os.environ[_INDEX])])
        self.cancelled = False
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGUSR2, lambda number, _: self._forward_signal(signal.Signals(number)))

    def run(self, max_retry: int = 0) -> None:
        """Start the job as often as it takes; max_retry: as in submitit, not used."""
        for start in itertools.count():
            name = f"{self.pid}-{start}"
            os.environ[ATTEMPT] = name
            began = time.monotonic()
            try:
                with _held_back():
                    self.start_tasks()
                self.wait()
            finally:
                tasks = list(self.tasks)
                self.kill_tasks()
                # The next start needs their memory, and their GPUs.
                for task in tasks:
                    task.wait()
            limit = time.monotonic() - began >= self.timeout_s - self.signal_delay_s
            circumstances = Circumstances(limit=limit, cancelled=self.cancelled, status=_status(tasks))
            attempt, again = settle(self.job, name, circumstances)
            why = f" ({attempt.why})" if attempt.why else ""
            with (self.folder / f"{self.pid}_0_log.out").open("a") as log:
                log.write(f"start {name}: {attempt.outcome}{why}. {attempt.message} {attempt.action}\n")
            if not again or self.cancelled:
                return
            end = time.monotonic() + pause(self.job.history())
            while time.monotonic() < end and not self.cancelled:
                time.sleep(_POLL)

    def wait(self, freq: int = 24) -> list[int | None]:
        """Until all processes have ended, one has died and the others had time to notice, or the limit is over."""
        began, died, sent = time.monotonic(), 0.0, set[str]()
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.monotonic()
            if all(code is not None for code in codes):
                return codes
            died = died or (now if any(codes) else 0.0)
            over = now - began - self.timeout_s
            if (died and now - died > _GRACE) or over > _KILL_WAIT:
                return codes
            ends = over >= 0 or self.cancelled
            for name, due in (("SIGUSR2", over >= -self.signal_delay_s), ("SIGTERM", ends)):
                if due and name not in sent:
                    sent.add(name)
                    self._forward_signal(signal.Signals[name])
            time.sleep(_POLL)

    def _cancel(self, number: int, _: Any) -> None:
        # `wait` passes it on, also to processes that are only being started.
        self.cancelled = True


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait while processes are started: what is passed on reaches all of them, and none before it can answer.

    A new process has its parent's signal mask from its first instant; the work takes what is held back (task.py).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _status(tasks: Sequence[subprocess.Popen[Any]]) -> int:
    """What the processes ended with, as a shell has it: an error or a crash before the kills that followed it."""
    codes = [task.returncode or 0 for task in tasks]
    return max((128 - code if code < 0 else code for code in codes), key=lambda code: (code not in _KILLED, code))


def take_turn(folder: Path, at_once: int) -> IO[str] | None:
    """One of the `at_once` places of a submission's running jobs, held until it is closed; None when all are taken."""
    for place in range(at_once):
        file = (folder / f"place-{place}").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return file
    return None


def main(folder: Path) -> None:
    """Run the job that the environment names, when it is its turn."""
    controller = Controller(folder)
    gpu_count = controller.submission.resources.gpus_per_node
    while not controller.cancelled:
        place = take_turn(folder, int(os.environ[_AT_ONCE]))
        if place is not None:
            # Kept over all its starts; none where a job asks for none.
            with place, claimed(gpu_count, os.environ) as gpus:
                if gpus.shared:
                    sys.stderr.write(f"GPU {','.join(gpus.devices)}: shared with {gpus.shared} other run(s)\n")
                # Where nobody knows which there are, the first ones, if there are any.
                unknown = [] if VARIABLE in os.environ else map(str, range(gpu_count))
                os.environ[VARIABLE] = ",".join(gpus.devices or unknown)
                controller.run()
            return
        time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
