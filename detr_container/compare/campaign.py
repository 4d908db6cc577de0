"""A comparison from plan to report: what will run, what it will cost, running it here or as jobs, and the page."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from detr_container.base.clock import clock
from detr_container.base.files import write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.processes import environment_of_one
from detr_container.config.detection import DetectionExperiment, detection
from detr_container.jobs import submit as jobs
from detr_container.jobs.names import place_of_many
from detr_container.jobs.status import ACTIVE, Standing, standings
from detr_container.jobs.submit import Member
from detr_container.measure.costs import costs
from detr_container.tasks.detection.build import check_backbone, open_data
from detr_container.tasks.detection.largest import validation_sizes

from .grid import check_cell, members_of
from .measured import measured
from .member import run_member
from .options import PLAN, CompareOptions, ReportOptions
from .reading import label_of, read_runs
from .report import judging, plan_of, write_report
from .running import train_here
from .trial import training_seconds

_log = logging.getLogger(__name__)
K = TypeVar("K")
BACKWARD = 2
"""A backward pass costs about twice what a forward pass does."""


@dataclass(frozen=True)
class Campaign:
    """A comparison: its folder, its members and how each stands; command: what makes it.

    refused: cells that cannot be trained, and why; damaged: the same of single runs. The others are.
    """

    options: CompareOptions
    home: Path
    members: list[Member]
    standing: dict[Path, Standing]
    command: str
    refused: dict[str, str]
    damaged: dict[Path, str]

    @classmethod
    def of(cls, options: CompareOptions, command: str) -> Campaign:
        """What the options describe, with a reason for each cell and each run that cannot be trained.

        Raises ValueError when that is all of them.
        """
        home = place_of_many(options.runs, options.name, "--name")
        members = members_of(home, options.heads, options.backbones, options.seeds, options.base, options.setting)
        # What would be written over it may be another's.
        plan_of(home)
        now = dict(zip((m.folder for m in members), standings([m.folder for m in members]), strict=True))
        campaign = cls(options, home, members, now, command, {}, {})
        for label, experiment in campaign._cells().items():
            with _kept(campaign.refused, label, ValueError, OSError):
                check_cell(experiment)
                check_backbone(experiment)
        for member in campaign.todo:
            with _kept(campaign.damaged, member.folder, ValueError, OSError):
                jobs.check_member(member, world=1)
        campaign._check_some_left()
        return campaign

    @property
    def todo(self) -> list[Member]:
        """Members that neither are finished nor go on somewhere already, and can be trained."""
        left = [m for m in self.members if self.standing[m.folder].state not in (*ACTIVE, "finished")]
        return [m for m in left if not self._why_not(m)]

    def _why_not(self, member: Member) -> str:
        """Why a member cannot be trained; empty when it can."""
        return self.refused.get(label_of(detection(member.experiment)), "") or self.damaged.get(member.folder, "")

    def _check_some_left(self) -> None:
        """Raise ValueError when no member can be trained."""
        reasons = [self._why_not(member) for member in self.members]
        if all(reasons):
            raise ValueError("; ".join(dict.fromkeys(reasons)))

    # -- the plan -------------------------------------------------------------------------------------------------

    def plan(self) -> list[str]:
        """What there is to do and what it will cost, a line per run and one for all."""
        # First, since it finds what cannot be built, at once and in plain words.
        amount, seconds = self._amount(), self._seconds()
        self._check_some_left()
        lines, total, known = [], 0.0, True
        for member in self.members:
            now = self.standing[member.folder]
            label = label_of(detection(member.experiment))
            estimate = seconds.get(label)
            left = 1.0 - now.epoch / member.experiment.train.epochs
            if (why := self._why_not(member)) and now.state not in (*ACTIVE, "finished"):
                what = f"cannot be trained: {why}"
            elif member not in self.todo:
                what = ", ".join(filter(None, (now.state, now.score)))
            else:
                what = f"goes on after epoch {now.epoch:.1f}" if now.step else "to train"
                if estimate is None:
                    known = False
                else:
                    total += left * estimate
                    what += f", about {clock(left * estimate)}"
            lines.append(f"{member.folder}: {what}")
        lines += amount
        if self.todo:
            at_once = self._at_once
            told = (
                f"about {clock(total)} of training" if known else "how long is not known before a run of each has begun"
            )
            aside = f", {at_once} at a time" if at_once > 1 else ""
            lines.append(
                f"{len(self.todo)} of {len(self.members)} runs to train: {told}{aside}; evaluation comes on top"
            )
        else:
            done = sum(now.state in (*ACTIVE, "finished") for now in self.standing.values())
            lines.append(f"{'all ' if done == len(self.members) else ''}{done} runs are done or going on")
        lines += [f"left out: {what}: {why}" for what, why in self._left_out()]
        return lines

    def _left_out(self) -> list[tuple[object, str]]:
        """Cells and runs that cannot be trained, and why."""
        return [*self.refused.items(), *self.damaged.items()]

    def _amount(self) -> list[str]:
        """What training each cell computes, which does not depend on the machine."""
        data = open_data(detection(self.members[0].experiment))
        lines = []
        for label, experiment in self._cells().items():
            if label in self.refused:
                continue
            size = Counter(validation_sizes(experiment, data.val.annotations)).most_common(1)[0][0]
            with _kept(self.refused, label, ValueError, OSError, RuntimeError):
                cost = costs(experiment, len(data.classes), [size])
            if label in self.refused:
                continue
            pictures = len(data.train) * experiment.train.epochs
            work = (1 + BACKWARD) * cost.gflops.total * pictures
            lines.append(
                f"{label}: {cost.parameters.total / 1e6:.1f} M parameters, {cost.gflops.total:.2f} GFLOPs on "
                f"{size[0]} x {size[1]} pixels; {pictures:,} pictures a seed, about {_amount_of(work)}"
            )
        return lines

    def _cells(self) -> dict[str, DetectionExperiment]:
        experiments = [detection(member.experiment) for member in reversed(self.members)]
        return {label_of(experiment): experiment for experiment in experiments}

    def _seconds(self) -> dict[str, float]:
        """Seconds that training takes, by cell: from what its runs logged, or, where they will run here, tried out."""
        found = dict[str, float]()
        for record in read_runs([m.folder for m in self.members if self.standing[m.folder].step]):
            logged = measured(record)
            if record.experiment and logged.images_per_second and record.metrics:
                steps = record.metrics[-1]["step"] / record.metrics[-1]["epoch"] * record.experiment.train.epochs
                found[label_of(record.experiment)] = steps * record.experiment.train.batch / logged.images_per_second
        if self.options.submit:
            return found
        wanted = {label_of(detection(member.experiment)) for member in self.todo} - found.keys()
        cells = {label: one for label, one in self._cells().items() if label in wanted}
        tried, failed = training_seconds(cells, environment_of_one(self._at_once))
        self.refused.update({label: f"a first step failed: {why}" for label, why in failed.items()})
        return found | tried

    # -- running it -----------------------------------------------------------------------------------------------

    @property
    def _at_once(self) -> int:
        return self.options.at_once or 1

    def run(self) -> int:
        """Train here what is left to train, then write the report. Returns the exit status."""
        self._note()
        failed: dict[Path, str] = {}
        with StopRequest() as stop:
            try:
                failed = train_here(self.todo, self._at_once, stop)
            except InterruptedError:
                _log.info("interrupted: saved. The same command goes on from here:\n  %s", self.command)
                return stop.exit_code
        for folder, why in failed.items():
            _log.warning("%s failed: %s", folder, why)
        for what, why in self._left_out():
            _log.warning("%s was left out: %s", what, why)
        page = self._report()
        sys.stdout.write(f"{page}\n{page.resolve().as_uri()}\n")
        return 1 if failed else self.status

    def submit(self) -> int:
        """Submit what is left as an array; the run that finishes last writes the report. Returns the exit status."""
        self._note()
        if not self.todo:
            going = [folder for folder, now in self.standing.items() if now.state in ACTIVE]
            if going:
                sys.stdout.write(f"{len(going)} runs are going on: detr-container status {self.home}\n")
                return self.status
            return self.run()
        work = functools.partial(run_member, home=str(self.home.absolute()))
        submission = jobs.submit(
            self.todo,
            self.home / "submissions",
            self.options.slurm,
            self.options.cluster,
            at_once=self.options.at_once or (1 if self.options.cluster == "local" else 0),
            work=work,
        )
        sys.stdout.write(
            f"submitted {len(self.todo)} of {len(self.members)} runs: job {', '.join(submission.jobs)}\n"
            f"  detr-container status {self.home}   how they are getting on\n"
            f"  detr-container report {self.home}   a report of what there is so far\n"
            f"the last run to finish writes {self.home / 'report'}; the same command submits what has failed\n"
        )
        return self.status

    @property
    def status(self) -> int:
        """The exit status of a plan: 1 where something cannot be trained."""
        return int(bool(self._left_out()))

    def _note(self) -> None:
        names = [member.folder.name for member in self.members]
        write_json(self.home / PLAN, {"command": self.command, "members": names, "refused": self.refused})

    def _report(self) -> Path:
        measure = self.options.measure and not self.options.submit
        with judging() as tell:
            options = ReportOptions((str(self.home),), output=self.home / "report", measure=measure)
            return write_report(options, tell)


@contextmanager
def _kept(reasons: dict[K, str], key: K, *errors: type[Exception]) -> Iterator[None]:
    """Take such an error for a reason not to train this."""
    try:
        yield
    except errors as error:
        reasons[key] = " ".join(str(error).split())


def _amount_of(gflops: float) -> str:
    """Floating-point operations with three figures and a unit."""
    power = min(3, max(0, int(math.log10(max(gflops, 1)) // 3)))
    return f"{gflops / 1000**power:.3g} {'GTPE'[power]}FLOPs"
