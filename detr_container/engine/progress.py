"""What a person sees of a run in progress, and the same as JSON lines and TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.text import Text

from detr_container.base.clock import clock
from detr_container.base.files import JsonLines
from detr_container.base.processes import cores
from detr_container.base.terminal import column, console
from detr_container.config.settings import TrainConfig

from .run import Run
from .task import Evaluation

_log = logging.getLogger(__name__)
WAITING, LEAST = 0.3, 10.0
"""The share of time spent waiting for data above which a person is told, in intervals of as many seconds."""


T = TypeVar("T")


class _Left(ProgressColumn):
    """Time left by the mean speed since the start of this process; evaluation included."""

    def render(self, task: BarTask) -> Text:
        return Text(f"{clock(task.fields['left'])} left" if task.fields["left"] is not None else "", style="cyan")


class Progress:
    """A progress bar on a terminal, a line per logged step elsewhere; silent off the main process."""

    def __init__(
        self, run: Run, main: bool, step: int, total: int, epoch_steps: int, settings: TrainConfig, workers: int
    ) -> None:
        """workers: loader processes of this process."""
        self.run, self.main, self.start, self.step, self.total = run, main, step, step, total
        self.epoch_steps, self.settings, self.workers = epoch_steps, settings, workers
        self.data_wait, self.told = 0.0, False
        self.console = console(stderr=True)
        self.began = self.logged_at = time.monotonic()
        self.logged_step = step

    def __enter__(self) -> Self:
        if not self.main:
            return self
        from torch.utils.tensorboard import SummaryWriter

        columns = (
            column("{task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            _Left(),
            column("{task.fields[summary]}"),
        )
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal, refresh_per_second=4)
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.total, completed=self.step, left=None, summary="")
        self.evaluation = self.bar.add_task("evaluating", visible=False, left=None, summary="")
        self.lines = JsonLines(self.run.metrics_path)
        self.board = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.main:
            self.bar.stop()
            self.lines.close()
            self.board.close()

    def next_of(self, supply: Iterator[T]) -> T:
        """The next step's batches; how long they are waited for counts as `data_wait`."""
        began = time.monotonic()
        batches = next(supply)
        self.data_wait += time.monotonic() - began
        return batches

    def advance(self, step: int) -> None:
        """One more step is done."""
        self.step = step
        if self.main:
            done = step - self.start
            left = (time.monotonic() - self.began) / done * (self.total - step)
            epoch = f"epoch {-(-step // self.epoch_steps)}/{self.settings.epochs}"
            self.bar.update(self.task, completed=step, left=left, description=epoch)

    def resume(self) -> None:
        """Training continues after a checkpoint and an evaluation, whose time is not the next steps'."""
        self.logged_at = time.monotonic()

    def log(self, values: dict[str, Any], memory: float) -> None:
        """Write a line of metrics: means since the last line."""
        if not self.main:
            return
        now = time.monotonic()
        steps, seconds = self.step - self.logged_step, now - self.logged_at
        rate = steps * self.settings.batch / seconds
        waiting, self.data_wait = min(1.0, self.data_wait / seconds), 0.0
        # The first interval waits for the loader's processes to be made.
        if waiting > WAITING and seconds >= LEAST and self.logged_step > self.start and not self.told:
            self.told = True
            _log.warning("%s", _slow_loader(waiting, self.logged_step + 1, self.step, self.workers))
        self.logged_step, self.logged_at = self.step, now
        row = {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            **values,
            "images_per_second": rate,
            "data_wait": waiting,
            "memory_gib": memory,
        }
        self.lines.append(row)
        for name, value in row.items():
            if isinstance(value, dict):
                for term, number in value.items():
                    self.board.add_scalar(f"train/{name}_{term}", number, self.step)
            elif name not in ("step", "epoch"):
                self.board.add_scalar(f"train/{name}", value, self.step)
        terms = " ".join(f"{name} {number:.3f}" for name, number in values["losses"].items())
        speed = f"{rate:.1f} images/s ({100 * waiting:.0f} % waiting for data)"
        summary = f"loss {values['loss']:.3f}{f' ({terms})' * bool(terms)} {speed} {memory:.1f} GiB"
        self.bar.update(self.task, summary=summary)
        if not self.console.is_terminal:
            left = (now - self.began) / (self.step - self.start) * (self.total - self.step)
            self._print(
                f"step {self.step}/{self.total} epoch {row['epoch']:.2f} {summary} lr {values['lr']:.2g} "
                f"{clock(left)} left"
            )

    def evaluating(self, done: int, total: int) -> None:
        """So many batches of the evaluation are done."""
        if self.main:
            now = time.monotonic()
            if done == 1:
                self.evaluation_began = now
            left = (now - self.evaluation_began) / done * (total - done)
            self.bar.update(self.evaluation, total=total, completed=done, visible=done < total, left=left)

    def evaluated(self, row: dict[str, Any], found: Evaluation) -> None:
        """Show an evaluation: all of it at the end of the run, a line before it."""
        for name, value in row.items():
            if name not in ("step", "epoch", "images") and value is not None:
                self.board.add_scalar(f"val/{name}", value, row["step"])
        self.board.flush()
        if row["step"] == self.total:
            self.bar.stop()
            self.console.print(found.tables)
        else:
            self._print(f"epoch {row['epoch']}: {found.line}")

    def _print(self, line: str) -> None:
        self.bar.console.print(line, soft_wrap=True)


def _slow_loader(share: float, first: int, last: int, workers: int) -> str:
    """Steps wait for data; what to do about it."""
    if workers + 1 < cores():
        remedy = f"raise data.workers={workers}, since this process may use {cores()} cores"
    else:
        remedy = (
            f"data.workers={workers} keep all {cores()} cores busy that this process may use: give it more "
            "(slurm.cpus_per_task), or put the images on a faster disk"
        )
    return f"{100 * share:.0f} % of the time of steps {first} to {last} was spent waiting for data: {remedy}"
