"""The process that measures one experiment for `side_by_side`: a line of JSON asks, and a line of JSON answers."""

from __future__ import annotations

import itertools
import json
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from detr_container.base.host_memory import keep_freed_memory
from detr_container.base.processes import ProcessInfo
from detr_container.base.shortage import out_of_memory
from detr_container.config.settings import Experiment, from_dict, validate
from detr_container.datasets.loader import StepBatches
from detr_container.engine.peak_memory import MEANING, begin_phase, peak_memory
from detr_container.engine.session import Session, choose_device
from detr_container.engine.step import Stepper
from detr_container.engine.task import Task
from detr_container.engine.trials import Trials, trials_of

from .costs import count_flops, count_parameters, padded_size
from .options import PARTS, MeasureOptions, Work, size_text

WARMUP = 2
"""Passes and steps before anything is timed. The second step is the first with the optimizer's state beside it."""


class Bench:
    """One experiment's model, and what can be measured of it."""

    def __init__(self, experiment: Experiment, options: MeasureOptions) -> None:
        """Build the model. Raises ValueError for what cannot be built."""
        validate(experiment)
        self.experiment, self.options = experiment, options
        self.device = choose_device(experiment.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.set_device(self.device)
        own = options.source == "data" and options.training
        self.trials = trials_of(experiment)
        self.task = self.trials.opened() if own else self.trials.bare(options.classes)
        # First, so that what counting leaves behind is not taken for the model's memory.
        self.metrics = _counted(self.trials, self.task, options)
        self.meaning = begin_phase(self.device)
        self.idle = self.metrics["memory/idle"] = peak_memory(self.device)
        self.model = self.task.build(weights=False).to(self.device)
        self._steps: Iterator[list[Any]] | None = None

    def about(self) -> dict[str, str]:
        """On what is measured."""
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        return {"device": device, "torch": torch.__version__, "memory": MEANING[self.meaning]}

    def warm(self, work: Work) -> dict[str, float]:
        """Do the work until it runs smoothly. Returns the peak memory in GiB, beyond that without a model."""
        begin_phase(self.device)
        runs = self._runs(work)
        for _ in range(WARMUP):
            next(runs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {f"memory/{work.key}": max(0.0, peak_memory(self.device) - self.idle)}

    def measure(self, work: Work) -> dict[str, float]:
        """Do the work for a while. Returns medians of seconds, by part."""
        runs, rows = self._runs(work), list[list[Any]]()
        began = time.perf_counter()
        while not rows or time.perf_counter() - began < self.options.seconds:
            rows.append(next(runs))
            if work.phase == "forward" and self.device.type == "cuda":
                # Latency is what one pass takes, not what many in a row do.
                torch.cuda.synchronize()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        names: tuple[str, ...] = ("backbone", "head") if work.phase == "forward" else PARTS
        laps = [[_seconds(a, b) for a, b in pairwise(row)] for row in rows]
        if work.phase == "training" and self.options.source != "data":
            names, laps = names[1:], [row[1:] for row in laps]
        parts = {name: statistics.median(column) for name, column in zip(names, zip(*laps, strict=True), strict=True)}
        whole = statistics.median(sum(row) for row in laps)
        if work.phase == "forward":
            parts["total"] = whole
        else:
            parts |= {"step": whole, "images_per_second": work.images / whole}
        return {f"{work.key}/{name}": value for name, value in parts.items()}

    def _runs(self, work: Work) -> Iterator[list[Any]]:
        """The work again and again; each time the marks between its parts."""
        if work.phase == "forward":
            return self._passes(work)
        # One optimizer and one loader for all rounds.
        self._steps = self._steps or self._training(work)
        return self._steps

    def _mark(self) -> Any:
        """A moment, for `_seconds`. On a GPU it lies in its queue of work, so that nobody has to wait there."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _passes(self, work: Work) -> Iterator[list[Any]]:
        """Forward passes as evaluation makes them."""
        batch, marks = self._synthetic(work).to(self.device), list[Any]()
        self.model.eval()
        # Within one pass, since on a GPU what the backbone computes overlaps with starting what the head will.
        after = self.model.get_submodule("backbone").register_forward_hook(lambda *_: marks.append(self._mark()))
        try:
            while True:
                marks[:] = [self._mark()]
                with torch.inference_mode():
                    self.trials.infer(self.model, batch)
                yield [*marks, self._mark()]
        finally:
            after.remove()

    def _training(self, work: Work) -> Iterator[list[Any]]:
        """Training steps as `train` makes them."""
        experiment = self.experiment
        steps = Stepper(self.task, self.model, experiment.train, experiment.seed, Session(ProcessInfo(), self.device))
        steps.begin()
        supply = self._supply(work)
        marks: list[Any] = []
        for number in itertools.count():
            self.model.train()
            marks[:] = [self._mark()]
            host = next(supply)
            marks.append(self._mark())
            steps.take([host], number, 1.0, lap=lambda part: marks.append(self._mark()))
            yield [*marks]

    def _supply(self, work: Work) -> Iterator[Any]:
        """The same random batch again and again, or the experiment's own, as training loads them."""
        pin_memory = self.device.type == "cuda"
        if self.options.source != "data":
            batch = self._synthetic(work)
            batch = batch.pin_memory() if pin_memory else batch
            while True:
                yield batch
        images = work.images
        sampler = StepBatches(
            self.task.training_images,
            seed=self.experiment.seed,
            batch=images,
            micro_batch=images,
            total_steps=2**31,
        )
        yield from self.task.batches(self.model, sampler, pin_memory, lambda short: False)

    def _synthetic(self, work: Work) -> Any:
        """A batch of random images with random objects on them, on the host."""
        multiple = self.task.size_multiple(self.model)
        values = self.trials.of_size(work.size, multiple, work.images, self.options.objects)
        return self.trials.synthetic(self.task, values, self.experiment.seed)


def _counted(trials: Trials, task: Task, options: MeasureOptions) -> dict[str, float]:
    """What need not be timed: parameters, and FLOPs at every size."""
    model = task.build(weights=False)
    metrics = {f"parameters/{part}": count for part, count in asdict(count_parameters(model)).items()}
    for size in dict.fromkeys(options.sizes):
        flops = asdict(count_flops(model, padded_size(size, task.size_multiple(model)), trials.inputs))
        metrics |= {f"gflops/{size_text(size)}/{part}": count for part, count in flops.items()}
    return metrics


def _seconds(a: Any, b: Any) -> float:
    """Between two marks."""
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1000


def answer(bench: Bench | None, request: dict[str, Any]) -> tuple[Bench | None, dict[str, Any]]:
    """Do what a line asks for: prepare, warm or measure. Returns the model, and the answer."""
    try:
        if request["do"] == "prepare":
            bench = Bench(from_dict(request["experiment"]), _options(request["options"]))
            return bench, {"about": bench.about(), "figures": bench.metrics}
        assert bench is not None
        work = Work(**{**request["work"], "size": tuple(request["work"]["size"])})
        return bench, {"figures": bench.warm(work) if request["do"] == "warm" else bench.measure(work)}
    except Exception as error:
        if out_of_memory(error):
            return bench, {"no_memory": str(error)}
        if isinstance(error, (ValueError, OSError)):
            return bench, {"refused": str(error)}
        raise


def _options(values: dict[str, Any]) -> MeasureOptions:
    """Options as they were before they became JSON."""
    return MeasureOptions(**{**values, "sizes": tuple((height, width) for height, width in values["sizes"])})


def main() -> int:
    """Answer until nobody asks any more."""
    # Whatever a library prints must not come between the answers.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(OSError):
        # When memory runs out, the system had better end one of these than the process that has to report it.
        Path("/proc/self/oom_score_adj").write_text("1000")
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    bench: Bench | None = None
    while True:
        bench, reply = answer(bench, json.loads(requests.get()))
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


def _listen(requests: queue.SimpleQueue[str]) -> None:
    """Pass on what is asked; when the other end is gone, so is the reason to continue."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
