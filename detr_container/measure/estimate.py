"""The memory that a training step on the largest batch takes, and the time of a run.

Run as a program, this is the process in which a step on a CPU is tried: the system ends a process that asks for more
memory than there is, and that had better not be the one that has to report it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import out_of_memory
from detr_container.config import settings as config
from detr_container.config.settings import Experiment, TrainConfig
from detr_container.datasets.loader import steps_per_epoch
from detr_container.engine.peak_memory import GIB
from detr_container.engine.session import Session, open_session
from detr_container.engine.trials import Largest, Trials, trials_of

from .probe import Probe

_KILLED = 128 + signal.SIGKILL


class DoesNotFitError(RuntimeError):
    """A training step needs more memory than there is, or than it may have."""


# -- time -------------------------------------------------------------------------------------------------------------


def run_parts(
    train: TrainConfig, images: int, step: float, evaluation: float = 0.0, save: float = 0.0
) -> dict[str, tuple[int, float]]:
    """How often a whole run does what, and for how many seconds in all; what takes 0 seconds is left out.

    images: of the training set; step, evaluation, save: seconds that each takes once.
    """
    epoch_steps = steps_per_epoch(images, train.batch)
    every = train.epochs * epoch_steps
    steps = min(every, train.max_steps or every)
    epochs = steps // epoch_steps
    evaluations = epochs // train.eval_every if train.eval_every else 0
    # The last epoch is always evaluated.
    evaluations += bool(train.eval_every and steps == every and epochs % train.eval_every)
    busy = steps * step + evaluations * evaluation
    saves = epochs + (int(busy / 60 / train.checkpoint_minutes) if train.checkpoint_minutes else 0)
    saves += bool(steps % epoch_steps)
    parts = {"steps": (steps, step), "evaluations": (evaluations, evaluation), "checkpoints": (saves, save)}
    return {name: (count, count * seconds) for name, (count, seconds) in parts.items() if seconds}


# -- memory -----------------------------------------------------------------------------------------------------------


def step_memory(
    trials: Trials,
    largest: Largest,
    folder: Path,
    session: Session,
    stop: StopRequest,
    limit: float = 0.0,
) -> tuple[float, float]:
    """Bytes that a training step on the largest batch takes at most, and bytes that there are for it.

    limit: let it have so many bytes; 0: what is free. On a GPU the step is made here; on a CPU in a process of its own,
    where what the interpreter and the annotations take counts as well. Raises DoesNotFitError, and InterruptedError
    when a stop was requested while that process was at work.
    """
    if session.device.type == "cpu":
        room = limit or free_memory()
        return _in_process(trials.experiment, largest, folder, room, stop), room
    free, whole = torch.cuda.mem_get_info()
    room = min(limit or free, free)
    torch.cuda.set_per_process_memory_fraction(room / whole)
    try:
        _take_step(trials, largest, folder, session)
        return torch.cuda.max_memory_reserved(), room
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(room) from error
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _does_not_fit(room: float) -> DoesNotFitError:
    return DoesNotFitError(f"more than the {room / GIB:.2f} GiB that there are")


def _take_step(trials: Trials, largest: Largest, folder: Path, session: Session) -> None:
    """One step as `train` makes it, after one on small images, with which the optimizer's state comes into being."""
    task = trials.opened()
    probe = Probe(task, trials.experiment, folder, session)
    micro_batches = min(2, probe.sampler.accumulation)
    small, large = trials.synthetic(task, largest.small), trials.synthetic(task, largest.large)
    probe.step_on([small])
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # With a second micro batch there are gradients beside the features, as in every later one.
    probe.step_on([large] * micro_batches)


def free_memory() -> int:
    """Bytes that can still be taken on this machine, of what this process may take at most."""
    return int(min(psutil.virtual_memory().available, *cgroup_limits(), sys.maxsize))


def cgroup_limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that this process's control groups let it have, as Slurm and containers set them; old and new kind."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            # Where there is no limit the file says `max`; where a container shows only its own groups there is none.
            with suppress(OSError, ValueError):
                yield int((folder / name).read_text())
            if folder == top:
                break


def _in_process(experiment: Experiment, largest: Largest, folder: Path, room: float, stop: StopRequest) -> int:
    """Take the step in another process, which is ended when it has more than `room` bytes. Returns its peak.

    An interrupt must be a request: as an exception it could come between the start of the process and the care for it.
    """
    folder.mkdir(parents=True)
    log = folder / "log"
    request = {"experiment": config.to_dict(experiment), "largest": asdict(largest), "folder": str(folder / "run")}
    command = [sys.executable, "-m", __name__]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, 0, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):
                # Left open: that it closes lets the other process know that this one is gone.
                process.stdin.write(json.dumps(request).encode() + b"\n")
            _wait(process, room, stop)
        finally:
            process.kill()
            process.wait()
    if stop.requested is not None:
        raise InterruptedError(stop.requested)
    last = (log.read_text(errors="replace").splitlines() or [""])[-1]
    if process.returncode == 0 and last.isdigit():
        return int(last)
    if process.returncode in (-signal.SIGKILL, _KILLED):
        raise _does_not_fit(room)
    raise RuntimeError(f"the process that tried a step ended with status {process.returncode}: {last}")


def _wait(process: subprocess.Popen[bytes], room: float, stop: StopRequest) -> None:
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(process.pid)
        while process.poll() is None and stop.requested is None:
            if other.memory_info().rss > room:
                process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


def main() -> int:
    """Take the step that standard input describes, and print its peak memory."""
    _first_to_go()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    trials = trials_of(config.from_dict(request["experiment"]))
    largest = Largest(**request["largest"])
    with open_session("cpu") as session:
        try:
            _take_step(trials, largest, Path(request["folder"]), session)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return _KILLED
    sys.stdout.write(f"{round(session.peak_memory() * GIB)}\n")
    return 0


def _first_to_go() -> None:
    """Be the process that the system ends when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
