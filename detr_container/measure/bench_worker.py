"""The process that measures one experiment for `side_by_side`: a line of JSON asks, and a line of JSON answers."""

from __future__ import annotations

import json
import logging
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch

from detr_container.base.host_memory import keep_freed_memory
from detr_container.base.processes import ProcessInfo
from detr_container.base.shortage import out_of_memory
from detr_container.config.settings import Experiment, from_dict, validate
from detr_container.engine.peak_memory import MEANING, begin_phase, peak_memory
from detr_container.engine.session import Session, choose_device
from detr_container.engine.task import Task
from detr_container.engine.trials import Trials, trials_of

from .bench_training import WARMUP, Marks, TrainingSteps, mark, seconds, settle
from .costs import backbone_of, count_flops, count_parameters, padded_size
from .options import PARTS, MeasureOptions, Work, size_text


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
        self._training: TrainingSteps | None = None
        # Seconds of an evaluation for an image of the largest size.
        self._evaluation = 0.0

    def about(self) -> dict[str, str]:
        """On what is measured."""
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        return {"device": device, "torch": torch.__version__, "memory": MEANING[self.meaning]}

    def warm(self, work: Work) -> dict[str, float]:
        """Do the work until it runs smoothly. Returns the peak memory in GiB, beyond that without a model.

        Of training also what new sizes cost: see `TrainingSteps.warm`.
        """
        begin_phase(self.device)
        found = dict[str, float]()
        if work.phase == "training":
            found = self._steps().warm(work)
        else:
            for _ in islice(self._passes(work), WARMUP):
                pass
        settle(self.device)
        memory = {f"memory/{work.key}": max(0.0, peak_memory(self.device) - self.idle)}
        return memory | {f"{work.key}/{name}": value for name, value in found.items()}

    def watch(self, work: Work) -> dict[str, float]:
        """What PyTorch's profiler says of training steps: see `device_shares`; nothing on a CPU."""
        return {f"{work.key}/{name}": value for name, value in self._steps().watch(work).items()}

    def measure(self, work: Work) -> dict[str, float]:
        """Do the work for a while. Returns medians of seconds, by part."""
        rows = self._rows(work)
        training, options = work.phase == "training", self.options
        names: tuple[str, ...] = PARTS if training else ("backbone", "head")
        laps = [[seconds(a, b) for a, b in pairwise(row)] for row in rows]
        if training and options.source != "data":
            names, laps = names[1:], [row[1:] for row in laps]
        parts = {name: statistics.median(column) for name, column in zip(names, zip(*laps, strict=True), strict=True)}
        if not self.experiment.shows_objects:
            # Nothing is matched where there is nothing to find.
            parts.pop("matching", None)
        each = [sum(row) for row in laps]
        whole = statistics.median(each)
        if training:
            # Of several sizes every one counts.
            rate = work.images / (statistics.mean(each) if self._steps().varied else whole)
            parts |= {"step": whole, "images_per_second": rate}
            if self._steps().varied:
                parts["hours"] = self._steps().hours(rate, self._evaluation)
        else:
            parts["total"] = whole
            if work.size == options.largest:
                self._evaluation = min(self._evaluation or whole, whole / work.images)
        return {f"{work.key}/{name}": value for name, value in parts.items()}

    def _rows(self, work: Work) -> list[Marks]:
        """The work again and again for a while; each time the marks between its parts."""
        training, options = work.phase == "training", self.options
        least = options.drawn if training and options.source == "coco" else 1
        rows, began = list[Marks](), time.perf_counter()
        for row in self._steps().runs(work) if training else self._passes(work):
            rows.append(row)
            if not training:
                # Latency is what one pass takes, not what many in a row do.
                settle(self.device)
            if len(rows) >= least and time.perf_counter() - began >= options.seconds:
                break
        settle(self.device)
        return rows

    def _steps(self) -> TrainingSteps:
        """Training's steps, from the first that is asked for."""
        if self._training is None:
            alone = Session(ProcessInfo(), self.device)
            self._training = TrainingSteps(self.experiment, self.options, self.trials, self.task, self.model, alone)
        return self._training

    def _passes(self, work: Work) -> Iterator[list[Any]]:
        """Forward passes as evaluation makes them."""
        values = self.trials.of_size(work.size, self.task.size_multiple(self.model), work.images, self.options.objects)
        batch, marks = self.trials.synthetic(self.task, values, self.experiment.seed).to(self.device), list[Any]()
        self.model.eval()
        # Within one pass, since on a GPU what the backbone computes overlaps with starting what the head will.
        part = self.model.get_submodule(backbone_of(self.model))
        after = part.register_forward_hook(lambda *_: marks.append(mark(self.device)))
        try:
            while True:
                marks[:] = [mark(self.device)]
                with torch.inference_mode():
                    self.trials.infer(self.model, batch)
                end = mark(self.device)
                # A backbone of which another feature than its maps is read is not called itself: all counts as its.
                yield [*marks, end] if len(marks) > 1 else [*marks, end, end]
        finally:
            after.remove()


def _counted(trials: Trials, task: Task, options: MeasureOptions) -> dict[str, float]:
    """What need not be timed: parameters, and FLOPs at every size."""
    model = task.build(weights=False)
    metrics = {f"parameters/{part}": count for part, count in asdict(count_parameters(model)).items()}
    for size in dict.fromkeys(options.sizes):
        flops = asdict(count_flops(model, padded_size(size, task.size_multiple(model)), trials.inputs))
        metrics |= {f"gflops/{size_text(size)}/{part}": count for part, count in flops.items()}
    return metrics


def answer(bench: Bench | None, request: dict[str, Any]) -> tuple[Bench | None, dict[str, Any]]:
    """Do what a line asks for: prepare, warm, measure or watch. Returns the model, and the answer."""
    try:
        if request["do"] == "prepare":
            bench = Bench(from_dict(request["experiment"]), _options(request["options"]))
            return bench, {"about": bench.about(), "figures": bench.metrics}
        assert bench is not None
        work = Work(**{**request["work"], "size": tuple(request["work"]["size"])})
        does = {"warm": bench.warm, "measure": bench.measure, "watch": bench.watch}
        return bench, {"figures": does[request["do"]](work)}
    except Exception as error:
        if out_of_memory(error):
            return bench, {"no_memory": str(error)}
        if isinstance(error, (ValueError, OSError)):
            return bench, {"refused": str(error)}
        raise


def _options(values: dict[str, Any]) -> MeasureOptions:
    """Options as they were before they became JSON."""
    sizes = tuple((height, width) for height, width in values["sizes"])
    return MeasureOptions(**{**values, "sizes": sizes, "batch": tuple(values["batch"])})


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
    warnings = _Warnings()
    logging.getLogger("detr_container").addHandler(warnings)
    while True:
        bench, reply = answer(bench, json.loads(requests.get()))
        if warnings.texts:
            reply.setdefault("about", {})["warnings"] = warnings.texts
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


class _Warnings(logging.Handler):
    """Keeps what is warned of, such as that steps run without CUDA graphs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(record.getMessage())


def _listen(requests: queue.SimpleQueue[str]) -> None:
    """Pass on what is asked; when the other end is gone, so is the reason to continue."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
