"""What one wants to know before waiting in a queue: each part of a run is tried, briefly, and reported on one line."""

from __future__ import annotations

import gc
import io
import math
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import tyro

from detr_container.base.clock import clock
from detr_container.base.interrupt import StopRequest
from detr_container.base.limits import Many, between, check, natural
from detr_container.base.processes import current_process
from detr_container.base.terminal import digits
from detr_container.config.settings import Experiment, flatten, validate
from detr_container.datasets.loader import StepBatches, steps_per_epoch
from detr_container.engine.micro_batch import fit
from detr_container.engine.progress import WAITING
from detr_container.engine.session import Session, open_session
from detr_container.engine.task import Task
from detr_container.engine.trials import trials_of
from detr_container.launch.resources import minutes

from .checklist import Checklist, SkippedError
from .estimate import DoesNotFitError, run_parts, step_memory
from .probe import Probe, compare_resumed

GIB = 2**30
SECONDS = 20.0
"""How long to measure, where the number of steps does not end it first."""
STEPS = 10
"""Steps of which the median is reported."""
LEARNING_STEPS, FALL = 20, 0.05
"""Steps on one batch, and the share of the loss that they must take away. Every experiment here loses a fifth or more.

Dropout is the same at each of these steps, so that a model that learns nothing keeps its loss to the last digits.
"""
_RATES = ("train.lr", "train.lr_backbone", "train.lr_batch")


@dataclass(frozen=True)
class PreflightOptions:
    """Options of `preflight`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    runs: Path = Path("runs")
    """The folder that will hold the run; checkpoints are tried on its disk."""
    images: Many = 2000
    """How many images of each split to read, always the same ones; 0: all."""
    val_images: Annotated[int, between(1, 2**31)] = 8
    """How many validation images to evaluate, one batch of them at least."""
    memory: Annotated[float, natural(1e6)] = 0.0
    """GiB that the job will have, of its GPU or, without one, of the machine; 0: what is free here."""
    processes: Annotated[int, between(1, 100_000)] = 1
    """Estimate the time for so many processes, each as fast as this one, that share the batch."""
    time: str = ""
    """The job's time limit (45m, 12h, 1d12h): also report how often the run will meet it."""


def run(options: PreflightOptions) -> int:
    """Make all checks. Returns 1 when any is red, else 0."""
    # The experiment's own settings are the first check.
    check(replace(options, settings=type(options.settings)()))
    limit = 60.0 * minutes(options.time) if options.time else 0.0
    if current_process(os.environ).world > 1:
        raise ValueError("preflight is one process: start it without torchrun, and give --processes N")
    with (
        _ended_by_sigterm(),
        open_session(options.settings.device) as session,
        _scratch(options.runs) as (folder, refusal),
    ):
        return _Preflight(options, session, folder, refusal, limit).make()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave on SIGTERM as on Ctrl-C, cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _between_steps() -> Iterator[StopRequest]:
    """Let signals wait for who checks the request: the processes of a loader complain when they are cut off."""
    stop = StopRequest()
    try:
        with stop, suppress(InterruptedError):
            yield stop
    finally:
        # Whatever else went wrong meanwhile, whoever asked for a stop gets it.
        if stop.requested:
            raise KeyboardInterrupt if stop.requested == "SIGINT" else SystemExit(stop.exit_code)


@contextmanager
def _scratch(runs: Path) -> Iterator[tuple[Path, str]]:
    """A temporary folder on the disk of the runs, or elsewhere with the reason for it."""
    with ExitStack() as stack:
        refusal, place = "", next(folder for folder in (runs, *runs.absolute().parents) if folder.is_dir())
        try:
            temporary = tempfile.TemporaryDirectory(prefix=".preflight-", dir=place, ignore_cleanup_errors=True)
        except OSError as error:
            refusal = f"cannot write in {place}: {error.strerror}. Choose another folder with --runs"
            temporary = tempfile.TemporaryDirectory(prefix="preflight-", ignore_cleanup_errors=True)
        yield Path(stack.enter_context(temporary)), refusal


class _Preflight:
    """The checks in order, and what the later ones take from the earlier ones."""

    def __init__(self, options: PreflightOptions, session: Session, folder: Path, refusal: str, limit: float) -> None:
        self.options, self.session, self.folder, self.refusal, self.limit = options, session, folder, refusal, limit
        self.list = Checklist()
        self.sound, self.fits, self.multiple = False, True, 1
        self.trials = trials_of(options.settings)
        self.task: Task | None = None
        self.step_seconds = self.save_seconds = self.eval_rate = 0.0

    @property
    def experiment(self) -> Experiment:
        """What is tried."""
        return self.trials.experiment

    def make(self) -> int:
        """Make them all. Returns the exit status."""
        checks = {
            "settings": self.settings,
            "data": self.data_set,
            "memory": self.memory,
            "step": self.step,
            "learning": self.learning,
            "saving": self.saving,
            "evaluation": self.evaluation,
            "time": self.time,  # last, for it adds up what the others have measured
        }
        for name, attempt in checks.items():
            # Reading images has a bar of its own.
            self.list.attempt(name, attempt, busy=name != "data")
            if self.session.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
        return int(self.list.failed)

    # -- what can be known without a step -----------------------------------------------------------------------------

    def settings(self) -> str:
        """Values that no run can have, models that cannot be made, and settings without effect."""
        experiment, processes = self.experiment, self.options.processes
        warnings = validate(experiment)
        train = experiment.train
        share = StepBatches(
            train.batch, seed=0, batch=train.batch, micro_batch=train.micro_batch or 1, total_steps=0, world=processes
        )
        task = self.trials.bare()
        model = task.build(weights=False)
        task.parameter_groups(model)
        self.multiple, self.sound = task.size_multiple(model), True
        for warning in warnings:
            self.list.remark(warning)
        parts = f"{processes} x {share.accumulation} x {train.micro_batch} (processes, accumulation steps, images)"
        if not train.micro_batch:
            parts = f"{processes} x {share.accumulation} (processes, images, as many at a time as fit)"
        return f"{experiment.name}: batch {train.batch} = {parts}, {train.epochs} epochs, {len(warnings)} warnings"

    def data_set(self) -> str:
        """What is wrong with the images and what is said of them."""
        try:
            read = self.trials.check_data(self.options.images, self.list.remark)
            if self.sound:
                steps_per_epoch(self.trials.opened().training_images, self.experiment.train.batch)
            return read
        finally:
            # Damaged images are no reason not to try the rest.
            with suppress(ValueError, OSError):
                self.task = self.trials.opened()

    def memory(self) -> str:
        """Whether a step on the largest batch fits."""
        task, train = self._opened(), self.experiment.train
        if not train.micro_batch:
            return self._fit(task)
        largest = self.trials.largest(task, self.multiple)
        trials = self.trials.like(self._trial().untrained())
        try:
            limit, folder = self.options.memory * GIB, self.folder / "memory"
            with _between_steps() as stop:
                peak, room = step_memory(trials, largest, folder, self.session, stop, limit)
        except DoesNotFitError as error:
            self.fits = False
            fewer = f"train.micro_batch={train.micro_batch}, " if train.micro_batch > 1 else ""
            raise ValueError(
                f"a step on the largest batch ({largest.words}) needs {error}: lower {fewer}{largest.remedy}, "
                "or use train.precision=bf16"
            ) from error
        if peak > 0.9 * room:
            self.list.remark("less than a tenth of the memory is left, and batches of many shapes need some more")
        return f"{largest.words}: {peak / GIB:.2f} GiB of {room / GIB:.2f} GiB"

    def _fit(self, task: Task) -> str:
        """Which micro batch 0 is here; all later checks have that."""
        self.fits = False
        with _between_steps() as stop:
            fitted = fit(task, self._trial(), self.session, stop, self.options.memory * GIB)
            train = replace(self.experiment.train, micro_batch=fitted.images)
            self.trials = self.trials.like(replace(self.experiment, train=train))
            self.task, self.fits = task.resolved(self.experiment), True
        return f"train.micro_batch=0 is {fitted.images} here: {fitted}"

    # -- what steps show ----------------------------------------------------------------------------------------------

    def step(self) -> str:
        """Seconds of a step on real batches."""
        probe = self._probe("step")
        with _between_steps() as stop, closing(probe.timed_steps()) as steps:
            # What the loader has made while the first steps took long is used up before the clock runs.
            ahead = 4 * self.experiment.loader_workers * self.experiment.train.micro_batch
            warm = _measure(steps, 2 + ahead * self.options.processes // self.experiment.train.batch, 1, stop)
            rows = _measure(steps, STEPS, 2, stop)
        self.step_seconds = statistics.median(whole for _, whole in rows)
        waiting = sum(waited for waited, _ in rows) / sum(whole for _, whole in rows)
        if waiting > WAITING:
            self.list.remark(
                f"steps wait for data: raise data.workers={self.experiment.loader_workers}, or use faster disks"
            )
        rate = self.experiment.train.batch / self.options.processes / self.step_seconds
        return (
            f"{self.step_seconds:.3g} s (median of {len(rows)} after {len(warm)}), {digits(rate)} images/s, "
            f"{100 * waiting:.0f} % of it waiting for data"
        )

    def learning(self) -> str:
        """Whether training on one batch lowers its loss."""
        probe = self._probe("learning")
        batch = self.trials.learnable(self._opened(), probe.model)
        losses, end = [probe.step_on([batch])], time.monotonic() + SECONDS
        while len(losses) <= LEARNING_STEPS and (time.monotonic() < end or losses[-1] > (1 - FALL) * losses[0]):
            losses.append(probe.step_on([batch]))
        change = f"loss {losses[0]:.6g} -> {losses[-1]:.6g} in {len(losses) - 1} steps on one batch"
        if not losses[-1] <= (1 - FALL) * losses[0]:
            rates = [f"{name}={rate:g}" for name, rate in flatten(self.experiment).items() if name in _RATES]
            raise ValueError(
                f"{change}: it must fall by {100 * FALL:.0f} %. Look at {' and '.join(rates)} (too small, or too "
                "large), and at what is frozen; `data check` counts the labels"
            )
        return change

    def saving(self) -> str:
        """Whether a run that is interrupted and resumed is the uninterrupted one, and whether its checkpoints fit."""
        if self.refusal:
            raise ValueError(self.refusal)
        whole, size, seconds = self._run_to("whole", 4)
        middle, _, _ = self._run_to("parts", 2)
        parts, _, _ = self._run_to("parts", 2)
        for name in ("whole", "parts"):
            shutil.rmtree(self.folder / name)
        comparison = compare_resumed(whole, parts, middle, exact=self.session.device.type == "cpu")
        keep, free = self.experiment.train.keep_checkpoints, shutil.disk_usage(self.folder).free
        if free < (keep + 1) * size:
            raise ValueError(
                f"checkpoints of {size / GIB:.2f} GiB, of which {keep + 1} (train.keep_checkpoints and a new one) do "
                f"not fit where {self.options.runs} is: {free / GIB:.2f} GiB are free. Make room, or choose another "
                "folder with --runs"
            )
        self.save_seconds = seconds
        return f"{comparison}; {size / 2**20:.1f} MiB in {seconds:.2g} s, {free / GIB:.0f} GiB free"

    def evaluation(self) -> str:
        """Whether an evaluation gives metrics, and how fast."""
        folder, of_batch = self.folder / "evaluation", self.experiment.evaluation_batch
        task = self.trials.few(self._opened(), max(self.options.val_images, of_batch), folder / "few.json")
        model = Probe(task, self._trial(), self.folder / "model", self.session).model
        times = [time.perf_counter()]

        with _between_steps() as stop:

            def after_batch(done: int, total: int) -> None:
                times.append(time.perf_counter())
                if stop.requested:
                    raise InterruptedError

            def ends(short: bool) -> bool:
                return stop.requested is not None

            found = task.evaluate(model, folder, 0, self.session, after_batch, ends)
        assert found is not None
        wrong = [name for name, value in found.metrics.items() if value is not None and not math.isfinite(value)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} came out as no number")
        # The first batch starts the loader and warms up the device.
        first = min(of_batch, task.validation_images) if len(times) > 2 else 0
        self.eval_rate = (task.validation_images - first) / (times[-1] - times[1 if first else 0])
        headline = self.experiment.metrics[0]
        value = found.metrics[headline.key]
        score = "nothing to find" if value is None else f"{headline.label} {headline.text(value)}, before training"
        return f"{task.validation_images} images, {digits(self.eval_rate)} images/s; {score}"

    def time(self) -> str:
        """How long the run will take, from what was measured."""
        if not self.step_seconds:
            raise SkippedError("no step was measured")
        task, processes = self._opened(), self.options.processes
        evaluation = task.validation_images / self.eval_rate / processes if self.eval_rate else 0.0
        parts = run_parts(self.experiment.train, task.training_images, self.step_seconds, evaluation, self.save_seconds)
        whole = sum(seconds for _, seconds in parts.values())
        listed = ", ".join(f"{count} {name} {clock(seconds)}" for name, (count, seconds) in parts.items())
        estimate = (
            f"about {clock(whole)} ({listed}): estimated for {processes} process{'es' * (processes > 1)} as fast as "
            "this one, without what starting and communication take"
        )
        if not self.limit:
            return estimate
        if self.limit <= self.step_seconds + self.save_seconds:
            raise ValueError(f"{estimate}; not even a step and its checkpoint end in {self.options.time}: raise --time")
        return (
            f"{estimate}; it meets the limit of {self.options.time} {max(0, math.ceil(whole / self.limit) - 1)} times"
        )

    # -- what the checks share ----------------------------------------------------------------------------------------

    def _opened(self) -> Task:
        if not self.sound:
            raise SkippedError("the settings have to be fixed first")
        if self.task is None:
            raise SkippedError("the data set cannot be used")
        return self.task

    def _trial(self, **changed: Any) -> Experiment:
        """The experiment as one of the processes would train it, without end, warm-up, evaluations or log."""
        train = replace(
            self.experiment.train.at_full_rate(),
            batch=self.experiment.train.batch // self.options.processes,
            epochs=max(1000, self.experiment.train.epochs),
            eval_every=0,
            log_every=2**31,
            checkpoint_minutes=0.0,
            max_steps=0,
        )
        return replace(self.experiment, train=replace(train, **changed))

    def _probe(self, name: str, stop: StopRequest | None = None, **changed: Any) -> Probe:
        """A trainer in a folder of that name. changed: settings of its training."""
        self._opened()
        if not self.fits:
            raise SkippedError("a step does not fit into memory")
        trial = self._trial(**changed)
        return Probe(self.trials.like(trial).opened(), trial, self.folder / name, self.session, stop)

    def _run_to(self, name: str, steps: int) -> tuple[dict[str, Any], int, float]:
        """Train on in a folder of that name. Returns the checkpoint, its bytes, and the seconds that saving took."""
        train = self._trial().train
        with _between_steps() as stop, redirect_stderr(io.StringIO()):
            probe = self._probe(name, stop, batch=min(train.batch, 2 * train.micro_batch), max_steps=steps)
            probe.run_to_end()
        saved = probe.checkpoints.newest()
        assert saved is not None
        return saved[1], saved[0].stat().st_size, max(probe.save_seconds)


def _measure(
    steps: Iterator[tuple[float, float]], count: int, least: int, stop: StopRequest
) -> list[tuple[float, float]]:
    """Take `count` steps, or fewer when time is up, but `least`."""
    rows: list[tuple[float, float]] = []
    end = time.monotonic() + SECONDS
    while not stop.requested and (len(rows) < least or (len(rows) < count and time.monotonic() < end)):
        rows.append(next(steps))
    return rows
