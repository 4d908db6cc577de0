"""A comparison from plan to report: what will run at what cost, training on this machine or as jobs, the page."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from detr_container.base.clock import clock
from detr_container.base.files import write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import environment_of_one
from detr_container.config.settings import Experiment
from detr_container.jobs import submit as jobs
from detr_container.jobs.names import place_of_many
from detr_container.jobs.status import ACTIVE, RunStatus, statuses_of
from detr_container.jobs.submit import PlannedRun
from detr_container.measure.costs import costs

from .contest import Contest, contest_of
from .measured import measured
from .one_run import run_and_report
from .options import PLAN, CompareOptions, ReportOptions
from .reading import label_of, read_runs
from .report import evaluation_progress, plan_of, write_report
from .running import train_locally
from .trial import training_seconds

_log = logging.getLogger(__name__)
K = TypeVar("K")
BACKWARD = 2
"""A backward pass costs about twice what a forward pass does."""


@dataclass(frozen=True)
class Comparison:
    """A comparison: its folder, its runs and the status of each; command: what makes it.

    refused: arms that cannot be trained, and why; damaged: the same of single runs. The others are.
    """

    options: CompareOptions
    contest: Contest[Any]
    home: Path
    runs: list[PlannedRun]
    statuses: dict[Path, RunStatus]
    command: str
    refused: dict[str, str]
    damaged: dict[Path, str]

    @classmethod
    def of(cls, options: CompareOptions, command: str) -> Comparison:
        """What the options describe, with a reason for each arm and each run that cannot be trained.

        Raises ValueError when that is all of them.
        """
        home = place_of_many(options.runs, options.name, "--name")
        contest = contest_of(options.task)
        runs = contest.planned(home, options)
        # What would be written over it may be another's.
        plan_of(home)
        folders = [run.folder for run in runs]
        statuses = dict(zip(folders, statuses_of(folders), strict=True))
        comparison = cls(options, contest, home, runs, statuses, command, {}, {})
        for label, experiment in comparison._arms().items():
            with _kept(comparison.refused, label, ValueError, OSError):
                contest.check(experiment)
        trained = [one for label, one in comparison._arms().items() if label not in comparison.refused]
        comparison = replace(comparison, runs=contest.together(comparison.runs, trained))
        for run in comparison.todo:
            with _kept(comparison.damaged, run.folder, ValueError, OSError):
                jobs.check_run(run, world=1)
        comparison._check_some_left()
        return comparison

    @property
    def todo(self) -> list[PlannedRun]:
        """Runs that are neither finished nor in progress already, and can be trained."""
        left = [run for run in self.runs if self.statuses[run.folder].state not in (*ACTIVE, "finished")]
        return [run for run in left if not self._why_not(run)]

    def _why_not(self, run: PlannedRun) -> str:
        """Why a run cannot be trained; empty when it can."""
        return self.refused.get(label_of(run.experiment), "") or self.damaged.get(run.folder, "")

    def _check_some_left(self) -> None:
        """Raise ValueError when no run can be trained."""
        reasons = [self._why_not(run) for run in self.runs]
        if all(reasons):
            raise ValueError("; ".join(dict.fromkeys(reasons)))

    # -- the plan -------------------------------------------------------------------------------------------------

    def plan(self) -> list[str]:
        """What is left to do and what it will cost, a line per run and one for all."""
        # First, since it finds what cannot be built, at once and in plain words.
        amount, seconds = self._amount(), self._seconds()
        self._check_some_left()
        lines, total, known = [], 0.0, True
        for run in self.runs:
            status = self.statuses[run.folder]
            label = label_of(run.experiment)
            estimate = seconds.get(label)
            left = 1.0 - status.epoch / run.experiment.train.epochs
            if (why := self._why_not(run)) and status.state not in (*ACTIVE, "finished"):
                what = f"cannot be trained: {why}"
            elif run not in self.todo:
                what = ", ".join(filter(None, (status.state, status.score)))
            else:
                what = f"resumes after epoch {status.epoch:.1f}" if status.step else "to train"
                if estimate is None:
                    known = False
                else:
                    total += left * estimate
                    what += f", about {clock(left * estimate)}"
            lines.append(f"{run.folder}: {what}")
        lines += amount
        if self.todo:
            at_once = self._at_once
            duration = (
                f"about {clock(total)} of training" if known else "how long is not known before a run of each has begun"
            )
            aside = f", {at_once} at a time" if at_once > 1 else ""
            lines.append(
                f"{len(self.todo)} of {len(self.runs)} runs to train: {duration}{aside}; evaluation comes on top"
            )
        else:
            done = sum(status.state in (*ACTIVE, "finished") for status in self.statuses.values())
            lines.append(f"{'all ' if done == len(self.runs) else ''}{done} runs are done or in progress")
        lines += [f"left out: {what}: {why}" for what, why in self._left_out()]
        return lines

    def _left_out(self) -> list[tuple[object, str]]:
        """Arms and runs that cannot be trained, and why."""
        return [*self.refused.items(), *self.damaged.items()]

    def _amount(self) -> list[str]:
        """What training each arm computes, which does not depend on the machine."""
        arms = {label: one for label, one in self._arms().items() if label not in self.refused}
        lines = []
        for label, amount in self.contest.amounts(arms).items():
            with _kept(self.refused, label, ValueError, OSError, RuntimeError):
                cost = costs(arms[label], amount.classes, [amount.size])
            if label in self.refused:
                continue
            images = amount.images * arms[label].train.epochs
            work = (1 + BACKWARD) * cost.gflops.total * images
            lines.append(
                f"{label}: {cost.parameters.total / 1e6:.3g} M parameters, {cost.gflops.total:.3g} GFLOPs on "
                f"{amount.size[0]} x {amount.size[1]} pixels; {images:,} {amount.unit} a seed, about {_amount_of(work)}"
            )
        return lines

    def _arms(self) -> dict[str, Experiment]:
        return {label_of(run.experiment): run.experiment for run in reversed(self.runs)}

    def _seconds(self) -> dict[str, float]:
        """Seconds that training takes, by arm: logged by its runs, or, where they train on this machine, by trial."""
        found = dict[str, float]()
        for record in read_runs([run.folder for run in self.runs if self.statuses[run.folder].step]):
            logged = measured(record)
            if record.experiment and logged.images_per_second and record.metrics:
                steps = record.metrics[-1]["step"] / record.metrics[-1]["epoch"] * record.experiment.train.epochs
                found[label_of(record.experiment)] = steps * record.experiment.train.batch / logged.images_per_second
        if self.options.submit:
            return found
        unknown = {label_of(run.experiment) for run in self.todo} - found.keys()
        arms = {label: one for label, one in self._arms().items() if label in unknown}
        tried, failed = training_seconds(arms, environment_of_one(self._at_once))
        self.refused.update({label: f"a first step failed: {why}" for label, why in failed.items()})
        return found | tried

    # -- running it -----------------------------------------------------------------------------------------------

    @property
    def _at_once(self) -> int:
        return self.options.at_once or 1

    def train(self) -> int:
        """Train on this machine what is left to train, then write the report. Returns the exit status."""
        self._note()
        failed: dict[Path, str] = {}
        with StopRequest() as stop:
            try:
                failed = train_locally(self.todo, self._at_once, stop)
            except InterruptedError:
                _log.info("interrupted: saved. The same command resumes from here:\n  %s", self.command)
                return stop.exit_code
        for folder, why in failed.items():
            _log.warning("%s failed: %s", folder, why)
        for what, why in self._left_out():
            _log.warning("%s was left out: %s", what, why)
        page = self._report()
        sys.stdout.write(f"{page}\n{page.resolve().as_uri()}\n")
        return 1 if failed else self.exit_status

    def submit(self) -> int:
        """Submit what is left as an array; the run that finishes last writes the report. Returns the exit status."""
        self._note()
        if not self.todo:
            active = [folder for folder, status in self.statuses.items() if status.state in ACTIVE]
            if active:
                sys.stdout.write(f"{len(active)} runs are in progress: detr-container status {self.home}\n")
                return self.exit_status
            return self.train()
        work = functools.partial(run_and_report, home=str(self.home.absolute()))
        submission = jobs.submit(
            self.todo,
            self.home / "submissions",
            self.options.slurm,
            self.options.cluster,
            at_once=self.options.at_once or (1 if self.options.cluster == "local" else 0),
            work=work,
        )
        sys.stdout.write(
            f"submitted {len(self.todo)} of {len(self.runs)} runs: job {', '.join(submission.jobs)}\n"
            f"  detr-container status {self.home}   their status\n"
            f"  detr-container report {self.home}   a report of what is done so far\n"
            f"the last run to finish writes {self.home / 'report'}; the same command submits what has failed\n"
        )
        return self.exit_status

    @property
    def exit_status(self) -> int:
        """The exit status of a plan: 1 where something cannot be trained."""
        return int(bool(self._left_out()))

    def _note(self) -> None:
        names = [run.folder.name for run in self.runs]
        write_json(self.home / PLAN, {"command": self.command, "members": names, "refused": self.refused})

    def _report(self) -> Path:
        measure = self.options.measure and not self.options.submit
        with evaluation_progress() as on_progress:
            options = ReportOptions((str(self.home),), output=self.home / "report", measure=measure)
            return write_report(options, on_progress)


@contextmanager
def _kept(reasons: dict[K, str], key: K, *errors: type[Exception]) -> Iterator[None]:
    """Take such an error for a reason not to train this."""
    try:
        yield
    except errors as error:
        reasons[key] = " ".join(str(error).split())


def _amount_of(gflops: float) -> str:
    """Floating-point operations with three digits and a unit."""
    power = min(3, max(0, int(math.log10(max(gflops, 1)) // 3)))
    return f"{gflops / 1000**power:.3g} {'GTPE'[power]}FLOPs"
