"""What `train.micro_batch=0` stands for: the most images of which a training step fits into the memory, a power of two.

Found by trying: whole steps on the largest micro batch that the data can give, with the optimizer's state and averages.
Run as a program, this is the process in which they are taken, so that nothing of them stays behind.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detr_container.base.host_memory import keep_freed_memory
from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import ProcessInfo, count
from detr_container.base.shortage import out_of_memory
from detr_container.base.trial_process import KILLED, free_memory, ran_out, read_request, run_trial
from detr_container.config import settings as config
from detr_container.config.settings import Experiment

from .peak_memory import GIB, begin_phase, peak_memory
from .session import Session
from .step import Stepper
from .task import Task
from .trials import Largest, Trials, trials_of

SHARE = 0.9
"""Of the memory that there is: the rest is for batches of many shapes, and for what else this process does."""
_FITS = "fits "


@dataclass(frozen=True)
class Fitted:
    """A micro batch that fits: its images, what a step on the largest one took, and what there was, in bytes."""

    images: int
    peak: float
    room: float
    words: str

    def __str__(self) -> str:
        return f"{self.words}: {self.peak / GIB:.2f} GiB of {self.room / GIB:.2f} GiB"


def candidates(batch: int, world: int) -> list[int]:
    """The powers of two that divide a process's share of a batch, ascending. Raises ValueError when it has none."""
    if batch % world:
        raise ValueError(
            f"train.batch={batch} is not divisible by {world} processes: make train.batch a multiple of {world}"
        )
    return [1 << power for power in range((batch // world).bit_length()) if batch // world % (1 << power) == 0]


def fit(
    task: Task, experiment: Experiment, session: Session, stop: StopRequest, limit: float = 0.0, known: object = 0
) -> Fitted:
    """The largest micro batch that fits on this process.

    limit: as if there were so many bytes; 0: what is free. known: what the run had before, which is taken if it fits.
    Raises ValueError where none fits or none can be tried, and InterruptedError on a request to stop.
    """
    room = SHARE * (limit or _free(session.device))
    tried = candidates(experiment.train.batch, session.world)
    if isinstance(known, int) and known in tried:
        if found := _largest_of([known], task, experiment, session, stop, room):
            return found
        tried = [each for each in tried if each < known]
    found = _largest_of(tried, task, experiment, session, stop, room)
    if found is None:
        words, remedy = _sizes(tried[:1] or [1], task, experiment)[0][1:]
        raise ValueError(
            f"train.micro_batch=0: not even one image fits into {room / GIB:.2f} GiB ({words}; a tenth is left free): "
            f"use train.checkpoint_activations=all or train.precision=bf16, or lower {remedy}"
        )
    return found


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory() / (count(os.environ, "LOCAL_WORLD_SIZE") or 1)


def _sizes(tried: list[int], task: Task, experiment: Experiment) -> list[tuple[dict[str, Any], str, str]]:
    """For each number of images, what another process needs to try it, its size and the remedy in words."""
    multiple, sizes = task.size_multiple(task.build(weights=False)), []
    for images in tried:
        settings = replace(experiment, train=replace(experiment.train, micro_batch=images))
        largest = trials_of(settings).largest(task.resolved(settings), multiple)
        sizes.append(
            ({"images": images, "large": largest.large, "small": largest.small}, largest.words, largest.remedy)
        )
    return sizes


def _largest_of(
    tried: list[int], task: Task, experiment: Experiment, session: Session, stop: StopRequest, room: float
) -> Fitted | None:
    """Try these numbers of images, ascending, until one does not fit. Returns the last that did."""
    sizes, device = _sizes(tried, task, experiment), session.device
    request = {
        "experiment": config.to_dict(experiment.untrained()),
        "classes": trials_of(experiment).classes(task),
        "sizes": [size for size, _, _ in sizes],
        "device": str(device),
        "room": room,
        "threads": torch.get_num_threads(),
    }
    # A GPU's memory is not the process's.
    resident = room if device.type == "cpu" else float("inf")
    with tempfile.TemporaryDirectory(prefix="micro-batch-") as folder:
        log = Path(folder) / "log"
        status, lines = run_trial([sys.executable, "-m", __name__], request, log, resident, stop)
    if status and not ran_out(status):
        raise ValueError(
            f"train.micro_batch=0: the process that tried steps ended with status {status} "
            f"({(lines or ['no message'])[-1]}): set train.micro_batch to a number"
        )
    fitting = [json.loads(line.removeprefix(_FITS)) for line in lines if line.startswith(_FITS)]
    return Fitted(tried[len(fitting) - 1], fitting[-1], room, sizes[len(fitting) - 1][1]) if fitting else None


# -- the other process ------------------------------------------------------------------------------------------------


def main() -> int:
    """Take the steps that standard input describes, and print the peak memory in bytes of each that fits."""
    request = read_request()
    session = Session(ProcessInfo(), torch.device(request["device"]))
    if session.device.type == "cuda":
        torch.cuda.set_device(session.device)
        free, whole = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(request["room"], free) / whole)
    else:
        keep_freed_memory()
        torch.set_num_threads(request["threads"])
    experiment = config.from_dict(request["experiment"])
    for size in request["sizes"]:
        settings = replace(experiment, train=replace(experiment.train, micro_batch=size["images"]))
        largest = Largest("", "", size["large"], size["small"])
        try:
            peak = _take_steps(trials_of(settings), largest, request["classes"], session)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return KILLED
        sys.stdout.write(f"{_FITS}{peak}\n")
        sys.stdout.flush()
    return 0


def _take_steps(trials: Trials, largest: Largest, classes: int, session: Session) -> int:
    """Steps as `train` takes them, by random weights. Returns the most bytes that they had."""
    begin_phase(session.device)
    task, settings = trials.bare(classes), trials.experiment
    torch.manual_seed(settings.seed)
    model = task.build(weights=False).to(session.device).train()
    steps = Stepper(task, model, settings.train, settings.seed, session)
    steps.begin()
    small, large = (trials.synthetic(task, values) for values in (largest.small, largest.large))
    # The first makes the optimizer's state, and its micro batch the gradients that the large one's come on top of. On a
    # GPU the large one is recorded at first, and then replayed; by itself it is new again, as another large shape would
    # be, which needs its memory beside that of what is recorded.
    several = [[small], [small, large], [small, large], [large]]
    for number, micro in enumerate(several if _on_gpu(session) else several[:2]):
        steps.take(micro, number, 1.0)
    if not steps.graphs_fit:
        raise MemoryError("it has no room for its graphs")
    return torch.cuda.max_memory_reserved() if _on_gpu(session) else round(peak_memory(session.device) * GIB)


def _on_gpu(session: Session) -> bool:
    return session.device.type == "cuda"


if __name__ == "__main__":
    sys.exit(main())
