"""Run commands by the hundred: a process that has imported everything forks one child for each, and checks its end.

A child is what `detr-container ARGUMENTS` is on a fresh machine, in a folder, a home and a temporary folder of its own;
importing torch would otherwise take most of the time.
"""

from __future__ import annotations

import json
import multiprocessing.util
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

MEMORY = 4 * 2**30
"""Bytes that a command on tiny inputs may take."""
GRACE = 20.0
"""Seconds that it may take to answer SIGTERM, and that what it has started may take to end after it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: its exit status, negative for the signal that ended it; stopped: by us, and why."""

    status: int
    stopped: str
    output: str
    errors: str
    left: list[str] = field(default_factory=list)
    """Command lines of processes that it left behind."""


class Forks:
    """Forked commands, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, arguments: Sequence[str], folder: Path, limit: float = 90.0, **environment: str) -> Ended:
        """Run a command in `folder`/work and wait for its end; after `limit` seconds it is asked to stop."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": list(arguments), "folder": str(folder), "limit": limit, "environment": environment}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks has ended with status {self._process.wait()}")
        outputs = [(folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        answer = json.loads(line)
        return Ended(answer["status"], answer["stopped"], outputs[0], outputs[1], answer["left"])


@contextmanager
def forks(environment: dict[str, str]) -> Iterator[Forks]:
    """A process that forks, for as long as it is needed."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Forks(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


# -- the process that forks -------------------------------------------------------------------------------------------


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Fork one child per request, a line of JSON, and report how it ended."""
    _import_everything()
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_a_command(**{key: request[key] for key in ("arguments", "folder", "environment")})
        answers.write(json.dumps(_watch(pid, request["limit"])) + "\n")
        answers.flush()


def _import_everything() -> None:
    """What commands import when they are called. None of it may compute: threads do not survive a fork."""
    import importlib
    import pkgutil

    import faster_coco_eval  # noqa: F401
    import matplotlib
    import timm  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import detr_container

    matplotlib.use("Agg")
    for module in pkgutil.walk_packages(detr_container.__path__, "detr_container."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            # What is optional is missing on a fresh machine, too.
            if "detectron2" not in str(error):
                raise
    import matplotlib.pyplot


def _be_a_command(arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    os.setsid()
    home = Path(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"HOME": str(home / "home"), "TMPDIR": str(home / "tmp"), **environment}
    os.chdir(home / "work")
    # With what the system gives names that are no text, as a shell would hand them over.
    sys.argv = ["detr-container", *arguments]
    status = 1
    try:
        from detr_container.commands.cli import main

        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:  # noqa: BLE001 - whatever it is, Python would print it and exit with 1
        traceback.print_exc()
    with suppress(Exception):
        # What Python does at its end, and `os._exit` does not: it ends the processes that this one has started.
        multiprocessing.util._exit_function()
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(status & 0xFF)


def _watch(pid: int, limit: float) -> dict[str, Any]:
    began, stopped, asked = time.monotonic(), "", 0.0
    child = psutil.Process(pid)
    while True:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        with suppress(psutil.Error):
            if child.memory_info().rss > MEMORY:
                stopped = f"it took more than {MEMORY >> 30} GiB"
                child.kill()
        if not stopped and now - began > limit:
            stopped, asked = "it did not end by itself", now
            child.terminate()
        elif asked and now - asked > GRACE:
            stopped = "it did not answer SIGTERM"
            child.kill()
        time.sleep(0.01)
    left = _in_session(pid)
    lines = []
    for process in left:
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline())[:200])
            process.kill()
    return {"status": os.waitstatus_to_exitcode(code), "stopped": stopped, "left": lines}


def _in_session(session: int) -> list[psutil.Process]:
    """Processes of a session whose leader has ended, once those that were just ending are gone.

    The server of loader processes takes a second or two on an idle machine: torch is a lot to clear away.
    """
    end = time.monotonic() + GRACE
    while True:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
