"""The memory that a training step on the largest batch takes, and the time of a run.

Run as a program, this is the process in which a step on a CPU is tried: the system ends a process that asks for more
memory than there is, and that had better not be the one that has to report it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import out_of_memory
from detr_container.base.trial_process import KILLED, free_memory, ran_out, read_request, run_trial
from detr_container.config import settings as config
from detr_container.config.settings import Experiment, TrainConfig
from detr_container.datasets.loader import steps_per_epoch
from detr_container.engine.peak_memory import GIB
from detr_container.engine.session import Session, open_session
from detr_container.engine.trials import Largest, Trials, trials_of

from .probe import Probe


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
    if session.device.type == "cuda":
        # In a step of another number of micro batches it is recorded anew, as another large shape would be, which needs
        # its memory beside that of what is recorded.
        probe.step_on([large] * (micro_batches + 1))
        if not probe.steps.graphs_fit:
            raise torch.OutOfMemoryError("there is no room for the graphs of the largest batch")


def _in_process(experiment: Experiment, largest: Largest, folder: Path, room: float, stop: StopRequest) -> int:
    """Take the step in another process, which is ended when it has more than `room` bytes. Returns its peak."""
    folder.mkdir(parents=True)
    request = {"experiment": config.to_dict(experiment), "largest": asdict(largest), "folder": str(folder / "run")}
    status, lines = run_trial([sys.executable, "-m", __name__], request, folder / "log", room, stop)
    last = (lines or [""])[-1]
    if status == 0 and last.isdigit():
        return int(last)
    if ran_out(status):
        raise _does_not_fit(room)
    raise RuntimeError(f"the process that tried a step ended with status {status}: {last}")


def main() -> int:
    """Take the step that standard input describes, and print its peak memory."""
    request = read_request()
    trials = trials_of(config.from_dict(request["experiment"]))
    largest = Largest(**request["largest"])
    with open_session("cpu") as session:
        try:
            _take_step(trials, largest, Path(request["folder"]), session)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return KILLED
    sys.stdout.write(f"{round(session.peak_memory() * GIB)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
