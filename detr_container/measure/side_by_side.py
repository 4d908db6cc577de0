"""Several experiments measured in turns on one machine, so that their ratios hold even where it is busy or throttled.

Each experiment lives in a process of its own (`bench_worker`), which sleeps while another one measures. A round is one
measurement of every kind by every experiment, kind by kind; whoever was first is last in the next round. What disturbs
the machine for a while disturbs all alike, so ratios are taken within each round before any median is.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import IO, Any, Self

from rich.progress import BarColumn, Progress, TimeRemainingColumn

from detr_container.base.terminal import column, console
from detr_container.config.settings import Experiment, to_dict

from .options import MeasureOptions

_REMEDY = "use smaller --sizes or a smaller --batch, or measure fewer experiments at a time"


def side_by_side(
    experiments: Mapping[str, Experiment], options: MeasureOptions, progress: bool = False
) -> dict[str, Any]:
    """Measure experiments, by label, in turns. The first is what the others are compared with.

    Returns, ready for JSON: {"options": those given, "first": its label, "experiments": {label: one}}, each one with
    - experiment, backbone, head, precision; settings: all of them;
    - device, torch, memory (what the metrics of memory mean): absent when its process never came to answer; warnings:
      a list, where there were any;
    - failure: None, or why it was given up, on one line; refused: whether its settings were at fault; said: all that
      its process then wrote to its standard error;
    - figures: {key: {"value": number, "rounds": [number per round], "ratio": {"median", "least", "most"}}}.
    Keys: parameters/{total,backbone,head,trained};
    gflops/HxW/{total,backbone,head}: of one image, see `costs`;
    forward/HxW/B/{total,backbone,head}: seconds from a batch of B uint8 images on the device to what is found, in
    evaluation mode; normalisation counts as backbone, post-processing as head;
    training/B/{data,forward,matching,loss,backward,optimizer,step}: seconds of a step on B images (data: only of images
    that are loaded); training/B/images_per_second;
    training/B/{values,sizes,new_size,new_sizes,hours}: see `TrainingSteps.warm`; hours: of the whole
    schedule, with evaluations where forward passes are measured;
    training/B/{busy,host_waits,kernels}: of a step on a GPU: see `device_shares`;
    memory/idle: GiB without a model; memory/forward/HxW/B, memory/training/B: the peak beyond that, in GiB.
    value: the median of the rounds, where there are rounds; ratio: to the first experiment, absent on itself and where
    either has no such metric: the median, least and most of the ratios within a round.
    Raises ValueError for options that nothing can be measured with; an experiment that fails does not end the others.
    """
    if not experiments:
        raise ValueError("there is no experiment to measure: name one or more")
    options.check()
    records = {label: _Measured(experiment) for label, experiment in experiments.items()}
    schedule = list(_schedule(list(experiments), options))
    screen = console(stderr=True)
    columns = (column("{task.description}"), BarColumn(), column("{task.percentage:.0f} %"))
    with ExitStack() as stack:
        bar = stack.enter_context(
            Progress(
                *columns,
                TimeRemainingColumn(),
                console=screen,
                transient=True,
                disable=not (progress and screen.is_terminal),
            )
        )
        task = bar.add_task("starting", total=len(schedule))
        workers = {
            label: stack.enter_context(Worker(stack.enter_context(tempfile.TemporaryFile()))) for label in experiments
        }
        for label, request, doing in schedule:
            bar.update(task, description=f"{label}: {doing}")
            if request["do"] == "prepare":
                request = {**request, "experiment": to_dict(experiments[label]), "options": asdict(options)}
            _take_turn(records[label], workers[label], request, doing)
            bar.advance(task)
    first = next(iter(records))
    return {
        "options": asdict(options),
        "first": first,
        "experiments": {
            label: record.described(None if label == first else records[first]) for label, record in records.items()
        },
    }


def _schedule(labels: list[str], options: MeasureOptions) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Who does what, one after the other: label, request to its process, and the same in words."""
    for label in labels:
        yield label, {"do": "prepare"}, "building, counting"
    works = options.works()
    for work in works:
        for label in labels:
            yield label, {"do": "warm", "work": asdict(work)}, f"warming up, {work}"
    for number in range(options.rounds):
        # Rotated, so that being first is nobody's advantage.
        start = number % max(1, len(labels))
        for work in works:
            for label in labels[start:] + labels[:start]:
                yield label, {"do": "measure", "work": asdict(work)}, f"round {number + 1}, {work}"
    # Last, since what the profiler disturbs is then measured already.
    for work in works:
        for label in labels if work.phase == "training" else ():
            yield label, {"do": "watch", "work": asdict(work)}, f"watching {work}"


@dataclass
class _Measured:
    """What is known of one experiment so far."""

    experiment: Experiment
    about: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failure: WorkerFailedError | None = None

    def described(self, first: _Measured | None) -> dict[str, Any]:
        """As `side_by_side` describes it."""
        failure, experiment = self.failure, self.experiment
        metrics: dict[str, dict[str, Any]] = {key: {"value": value} for key, value in self.fixed.items()}
        metrics |= {key: {"value": statistics.median(values), "rounds": values} for key, values in self.rounds.items()}
        if first is not None:
            for key, metric in metrics.items():
                mine, theirs = (each.rounds.get(key) or [each.fixed.get(key, 0.0)] for each in (self, first))
                # A round that one of both did not live to see has no pair.
                ratios = [a / b for a, b in zip(mine, theirs, strict=False) if b]
                if ratios:
                    median = statistics.median(ratios)
                    metric["ratio"] = {"median": median, "least": min(ratios), "most": max(ratios)}
        return {
            "experiment": experiment.name,
            **experiment.parts,
            "precision": experiment.train.precision,
            "settings": to_dict(experiment),
            **self.about,
            "failure": str(failure) if failure else None,
            "refused": bool(failure and failure.refused),
            "said": failure.stderr if failure else "",
            "figures": metrics,
        }


def _take_turn(record: _Measured, worker: Worker, request: dict[str, Any], doing: str) -> None:
    """Let one experiment do one thing, unless it has failed before."""
    if record.failure:
        return
    try:
        reply = worker.ask(request)
    except WorkerFailedError as failure:
        record.failure = failure if failure.refused else WorkerFailedError(f"{doing}: {failure}", stderr=failure.stderr)
        worker.end()
        return
    record.about |= reply.get("about", {})
    if request["do"] == "measure":
        for key, value in reply["figures"].items():
            record.rounds[key].append(value)
    else:
        record.fixed |= reply["figures"]


class WorkerFailedError(RuntimeError):
    """An experiment's process could not do what it was asked for, or is gone.

    refused: the settings are at fault; stderr: its standard error, where that may hold more.
    """

    def __init__(self, message: str, refused: bool = False, stderr: str = "") -> None:
        super().__init__(message)
        self.refused, self.stderr = refused, stderr


class Worker:
    """The process of one experiment; it ends with the `with` statement, or with the process that started it."""

    def __init__(self, errors: IO[bytes]) -> None:
        """Start it. errors: a file that gets what it writes to its standard error."""
        self._ended, self._errors = False, errors
        # In a group of its own: Ctrl-C is answered by us alone, and its loader's processes can be ended with it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "detr_container.measure.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process and all that it started."""
        if self._ended:
            return
        self._ended = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            # What could not be written any more is of no interest.
            with suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises WorkerFailedError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._gone()
        reply: dict[str, Any] = json.loads(line)
        if "refused" in reply:
            raise WorkerFailedError(reply["refused"], refused=True)
        if "no_memory" in reply:
            raise WorkerFailedError(f"out of memory: {_REMEDY}", stderr=reply["no_memory"])
        return reply

    def _gone(self) -> WorkerFailedError:
        status = self.process.wait()
        self._errors.seek(0)
        stderr = self._errors.read().decode(errors="replace").strip()
        if status == -signal.SIGKILL:
            return WorkerFailedError(
                f"its process was killed, most likely for lack of memory: {_REMEDY}", stderr=stderr
            )
        last = stderr.splitlines()[-1] if stderr else "without a word"
        return WorkerFailedError(f"its process ended with status {status}: {last}", stderr=stderr)
