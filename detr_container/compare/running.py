"""Members of a comparison trained on this machine, some at a time, with one display for all."""

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
from detr_container.jobs.status import Standing, standing
from detr_container.jobs.submit import Member
from detr_container.launch.gpus import VARIABLE, claimed

LOG = "log.txt"
_POLL = 0.5
_LAST_WORDS = 300


def train_here(members: Sequence[Member], at_once: int, stop: StopRequest) -> dict[Path, str]:
    """Train members in processes of their own, at most `at_once` together; what they say goes to log.txt in each.

    Returns what went wrong, by folder; one that fails does not stop the others. On a request to stop all save and
    end, and so does this with InterruptedError; calling it again goes on.
    """
    waiting, running = list(members), dict[Path, subprocess.Popen[bytes]]()
    gpus = dict[Path, ExitStack]()
    failed: dict[Path, str] = {}
    screen = console(stderr=True)
    columns = (column("{task.description}"), BarColumn(24), MofNCompleteColumn(), column("{task.fields[said]}"))
    with Bar(*columns, TimeElapsedColumn(), console=screen, disable=not screen.is_terminal) as bar:
        whole = bar.add_task("all runs", total=len(members), said="")
        tasks = {}
        try:
            while waiting or running:
                if stop.requested is not None:
                    raise InterruptedError(stop.requested)
                while waiting and len(running) < at_once:
                    member = waiting.pop(0)
                    gpus[member.folder] = ExitStack()
                    extra = _gpu_of(member, gpus[member.folder], screen)
                    running[member.folder] = _start(member, at_once, extra)
                    tasks[member.folder] = bar.add_task(member.folder.name, total=None, said="")
                    if not screen.is_terminal:
                        screen.print(f"{member.folder}: started", soft_wrap=True)
                for folder, process in list(running.items()):
                    now = standing(folder)
                    bar.update(tasks[folder], completed=now.step, total=now.total, said=_told(now))
                    if process.poll() is not None:
                        del running[folder]
                        gpus[folder].close()
                        bar.remove_task(tasks[folder])
                        bar.advance(whole)
                        if process.returncode:
                            failed[folder] = _last_words(folder) or f"exit status {process.returncode}"
                        said = failed.get(folder, _told(standing(folder)))
                        bar.console.print(f"{folder}: {said}", soft_wrap=True)
                time.sleep(_POLL)
        finally:
            _end(list(running.values()))
            for claim in gpus.values():
                claim.close()
    return failed


def _gpu_of(member: Member, held: ExitStack, screen: Console) -> dict[str, str]:
    """The variable that shows a member its own GPU, held with `held`; none where it has no use for one."""
    if member.experiment.device == "cpu":
        return {}
    claim = held.enter_context(claimed(1, os.environ))
    if claim.shared:
        told = f"{member.folder}: GPU {claim.devices[0]} is shared with {claim.shared} other run(s), for want of GPUs"
        screen.print(told, soft_wrap=True)
    return {VARIABLE: ",".join(claim.devices)} if claim.devices else {}


def _start(member: Member, at_once: int, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    run = Run(member.folder)
    write_json(run.config_path, config.to_dict(member.experiment))
    command = [sys.executable, "-m", "detr_container.compare.member", str(member.folder)]
    with (member.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            # Open as long as this process lives: when it closes, the member saves and ends.
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


def _told(now: Standing) -> str:
    return ", ".join(filter(None, (f"epoch {now.epoch:.1f}/{now.epochs or '?'}", now.score)))


def _last_words(folder: Path) -> str:
    """The last line of a run's log."""
    lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1][:_LAST_WORDS] if lines else ""
