"""Runs of a comparison trained on this machine, some at a time, with one display for all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from detr_container.base.files import write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import environment_of_one
from detr_container.base.terminal import column, console
from detr_container.config import settings as config
from detr_container.engine.run import Run
from detr_container.jobs.status import RunStatus, status_of
from detr_container.jobs.submit import PlannedRun
from detr_container.launch.gpus import VARIABLE, claimed

LOG = "log.txt"
_POLL = 0.5
_LONGEST_LINE = 300


def train_locally(runs: Sequence[PlannedRun], at_once: int, stop: StopRequest) -> dict[Path, str]:
    """Train runs in processes of their own, at most `at_once` together; the output of each goes to its log.txt.

    Returns what went wrong, by folder; one that fails does not stop the others. On a request to stop all save and
    end, and so does this with InterruptedError; calling it again resumes.
    """
    waiting, running = list(runs), dict[Path, subprocess.Popen[bytes]]()
    gpus = dict[Path, ExitStack]()
    failed: dict[Path, str] = {}
    screen = console(stderr=True)
    columns = (column("{task.description}"), BarColumn(24), MofNCompleteColumn(), column("{task.fields[progress]}"))
    with Bar(*columns, TimeElapsedColumn(), console=screen, disable=not screen.is_terminal) as bar:
        whole = bar.add_task("all runs", total=len(runs), progress="")
        tasks = {}
        try:
            while waiting or running:
                if stop.requested is not None:
                    raise InterruptedError(stop.requested)
                while waiting and len(running) < at_once:
                    run = waiting.pop(0)
                    gpus[run.folder] = ExitStack()
                    extra = _gpu_of(run, gpus[run.folder], screen)
                    running[run.folder] = _start(run, at_once, extra)
                    tasks[run.folder] = bar.add_task(run.folder.name, total=None, progress="")
                    if not screen.is_terminal:
                        screen.print(f"{run.folder}: started", soft_wrap=True)
                for folder, process in list(running.items()):
                    status = status_of(folder)
                    bar.update(tasks[folder], completed=status.step, total=status.total, progress=_progress(status))
                    if process.poll() is not None:
                        del running[folder]
                        gpus[folder].close()
                        bar.remove_task(tasks[folder])
                        bar.advance(whole)
                        if process.returncode:
                            failed[folder] = _last_line(folder) or f"exit status {process.returncode}"
                        outcome = failed.get(folder, _progress(status_of(folder)))
                        bar.console.print(f"{folder}: {outcome}", soft_wrap=True)
                time.sleep(_POLL)
        finally:
            _end(list(running.values()))
            for claim in gpus.values():
                claim.close()
    return failed


def _gpu_of(run: PlannedRun, held: ExitStack, screen: Console) -> dict[str, str]:
    """The variable that shows a run its own GPU, held with `held`; none where it has no use for one."""
    if run.experiment.device == "cpu":
        return {}
    claim = held.enter_context(claimed(1, os.environ))
    if claim.shared:
        message = f"{run.folder}: GPU {claim.devices[0]} is shared with {claim.shared} other run(s), for want of GPUs"
        screen.print(message, soft_wrap=True)
    return {VARIABLE: ",".join(claim.devices)} if claim.devices else {}


def _start(run: PlannedRun, at_once: int, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    write_json(Run(run.folder).config_path, config.to_dict(run.experiment))
    command = [sys.executable, "-m", "detr_container.compare.one_run", str(run.folder)]
    with (run.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            # Open as long as this process lives: when it closes, the run saves and ends.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment_of_one(at_once), **extra},
            # Ctrl-C is for this process, which passes it on once.
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to save and end, and wait for it."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()


def _progress(status: RunStatus) -> str:
    return ", ".join(filter(None, (f"epoch {status.epoch:.1f}/{status.epochs or '?'}", status.score)))


def _last_line(folder: Path) -> str:
    """The last line of a run's log."""
    lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1][:_LONGEST_LINE] if lines else ""
