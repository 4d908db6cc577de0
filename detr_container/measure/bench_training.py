"""Training steps that `benchmark` times: on one size, on sizes as training draws them, or on the data set's images."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from detr_container.config.settings import Experiment
from detr_container.engine.session import Session
from detr_container.engine.step import Stepper
from detr_container.engine.task import StaticBatch, Task
from detr_container.engine.trials import Trials

from .device_share import device_shares
from .estimate import run_parts
from .loading import SIZES
from .options import MeasureOptions, Work

WARMUP = 2
"""Passes and steps before anything is timed. The second step is the first with the optimizer's state beside it."""
COCO = (118_287, 5_000)
"""Training and validation images of COCO 2017."""
Marks = list[Any]


def mark(device: torch.device) -> Any:
    """A moment, for `seconds`. On a GPU it lies in its queue of work, so that nobody has to wait there."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(a: Any, b: Any) -> float:
    """Between two marks; on a GPU after it has come to both."""
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1000


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class TrainingSteps:
    """Steps as `train` makes them, of one model, on batches of any number of images."""

    def __init__(
        self, experiment: Experiment, options: MeasureOptions, trials: Trials, task: Task, model: nn.Module, at: Session
    ) -> None:
        self.experiment, self.options, self.trials, self.task, self.model = experiment, options, trials, task, model
        self.device = at.device
        # One optimizer and one supply of each kind for all rounds.
        self._steps = Stepper(task, model, experiment.train, experiment.seed, at)
        self._steps.begin()
        self._number = itertools.count()
        self._supplies: dict[Work, Iterator[Any]] = {}

    @property
    def varied(self) -> bool:
        """Whether batches have several sizes."""
        return self.options.source in ("coco", "data")

    def runs(self, work: Work) -> Iterator[Marks]:
        """Steps without end; each time the marks between its parts."""
        supply = self._supplied(work)
        self.model.train()
        while True:
            marks = [mark(self.device)]
            host = next(supply)
            yield self._step(host, [*marks, mark(self.device)])

    def _step(self, host: Any, marks: Marks) -> Marks:
        self._steps.take([host], next(self._number), 1.0, lap=lambda part: marks.append(mark(self.device)))
        return marks

    def warm(self, work: Work) -> dict[str, float]:
        """Take steps until they run smoothly; what new sizes cost, where there are several.

        Keys: {sizes, new_size, new_sizes}: how many sizes there were, the seconds that the first step at one took
        longer than later ones, and those of all together, the start included; values: numbers in the largest tensor of
        a batch, the mean.
        """
        own = self.options.source == "data"
        if not self.varied or (own and self.device.type == "cpu"):
            for _ in islice(self.runs(work), WARMUP):
                pass
            return {} if own else {"values": _values(next(self._supplied(work)))}
        first, again, values = dict[Hashable, float](), list[float](), list[int]()
        supply = self._supplied(work)
        self.model.train()
        for _ in range(2 * self.options.drawn):
            host = next(supply)
            settle(self.device)
            began = time.perf_counter()
            self._step(host, [])
            settle(self.device)
            taken, shape = time.perf_counter() - began, _shape(host)
            values.append(_values(host))
            if shape in first:
                again.append(taken)
            else:
                first[shape] = taken
        found = {"sizes": len(first), "values": statistics.mean(values)}
        if not again:
            return found
        usual = statistics.median(again)
        longer = [taken - usual for taken in first.values()]
        return {**found, "new_size": statistics.median(longer), "new_sizes": sum(longer)}

    def watch(self, work: Work) -> dict[str, float]:
        """What PyTorch's profiler says of steps on one batch; nothing on a CPU. See `device_shares`."""
        if self.device.type != "cuda":
            return {}
        self.model.train()
        host = next(self._supplied(work))
        return device_shares(lambda: self._step(host, []))

    def hours(self, images_per_second: float, evaluation: float) -> float:
        """Of the experiment's whole schedule on this device. evaluation: seconds for an image, 0: leave it out."""
        train = self.experiment.train
        own = self.options.source == "data"
        images, validation = (self.task.training_images, self.task.validation_images) if own else COCO
        parts = run_parts(train, images, train.batch / images_per_second, validation * evaluation)
        return sum(taken for _, taken in parts.values()) / 3600

    def _supplied(self, work: Work) -> Iterator[Any]:
        if work not in self._supplies:
            self._supplies[work] = self._supply(work)
        return self._supplies[work]

    def _supply(self, work: Work) -> Iterator[Any]:
        """Random batches again and again, or the experiment's own, as training loads them."""
        pin_memory, images = self.device.type == "cuda", work.images
        if self.options.source == "data":
            sampler = self.task.sampler(self.experiment.seed, batch=images, micro_batch=images, total_steps=2**31)
            return self.task.batches(self.model, sampler, pin_memory, lambda short: False)
        objects = self.options.objects
        if self.options.source == "coco":
            drawn = self.trials.drawn(self.model, SIZES, images, self.options.drawn, objects)
        else:
            multiple = self.task.size_multiple(self.model)
            drawn = [self.trials.of_size(work.size, multiple, images, objects)]
        # Those of one size are one batch, for the sake of memory.
        made = dict[str, Any]()
        for key, values in zip(map(str, drawn), drawn, strict=True):
            if key not in made:
                batch = self.trials.synthetic(self.task, values, self.experiment.seed)
                made[key] = batch.pin_memory() if pin_memory else batch
        return itertools.cycle([made[str(values)] for values in drawn])


def _shape(host: Any) -> Hashable:
    """What a graph is recorded for, or a kernel chosen by."""
    if not isinstance(host, StaticBatch):
        return type(host).__name__
    return tuple((tensor.shape, tensor.dtype) for tensor in host.tensors), host.form


def _values(host: Any) -> int:
    return max(tensor.numel() for tensor in host.tensors) if isinstance(host, StaticBatch) else 0
