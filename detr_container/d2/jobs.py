"""Trainings in detectron2's loop as jobs: what is checked before one is queued, and what each process of it calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detr_container.base.files import refuse_links
from detr_container.base.interrupt import StopRequest
from detr_container.base.terminal import start_logging
from detr_container.engine.run import WRITTEN
from detr_container.jobs.status import ACTIVE, status_of
from detr_container.jobs.submit import check_place, hand_over
from detr_container.launch.attempts import JobFolder
from detr_container.launch.resources import Resources
from detr_container.launch.submission import Submission, Where
from detr_container.launch.submit import script

from .config_files import Loaded, load
from .run import check, train

EVIDENCE = "model_*.pth"
"""A training that gets on writes checkpoints."""


@dataclass(frozen=True)
class Training:
    """What `d2 train` is told; see `run.train`."""

    config: str
    overrides: tuple[str, ...] = ()
    output: Path | None = None
    module: str = ""

    def opened(self) -> tuple[Loaded, Path]:
        """The configuration, and the folder that it writes to."""
        loaded = load(self.config, self.overrides, self.module)
        return loaded, (self.output or loaded.output).absolute()

    def anywhere(self, folder: Path) -> Training:
        """The same for a job: of ours by name, of another's configuration by its whole path."""
        own = Path(self.config).suffix not in (".py", ".yaml", ".yml")
        return replace(self, config=self.config if own else str(Path(self.config).absolute()), output=folder)


def run_training(training: Training, stop: StopRequest) -> int:
    """What every process of a job calls."""
    start_logging()
    return train(training.config, training.overrides, training.output, stop, training.module)


def submit(training: Training, resources: Resources, where: Where) -> tuple[Submission, Path]:
    """Submit a training as a job; returns the submission, and the folder that the job writes to.

    A configuration of ours is that of the copied code; a file is read by each start of the job as it then is. Raises
    ValueError for what can be known before anything is queued.
    """
    loaded, folder = training.opened()
    check(loaded, 1 if where == "debug" else resources.nodes * resources.tasks)
    check_place([folder], resources, where)
    _check_idle(folder)
    work: Any = functools.partial(run_training, training.anywhere(folder))
    submission = plan(loaded, folder, resources, where)
    return hand_over(submission, folder / "job" / "submissions", [work], folder.name), folder


def dry_run(training: Training, resources: Resources) -> str:
    """The batch script that `submit` would hand to sbatch."""
    resources.validate()
    loaded, folder = training.opened()
    return script(plan(loaded, folder, resources, "slurm"), folder.name)


def plan(loaded: Loaded, folder: Path, resources: Resources, where: Where) -> Submission:
    """The submission that would be made, in a folder that does not exist yet."""
    if not resources.cpus_per_task:
        # Slurm's own default of one core would starve the loader's processes.
        resources = replace(resources, cpus_per_task=loaded.workers + 1)
    home = folder / "job" / "submissions" / "NNN"
    return Submission(
        folder=home,
        where=where,
        folders=[str(folder)],
        resources=resources,
        evidence=EVIDENCE,
        code=str(home / "code"),
        workdir=str(Path().absolute()),
    )


def _check_idle(folder: Path) -> None:
    """Raise ValueError or OSError where a job of this folder waits or runs already."""
    refuse_links(folder, WRITTEN)
    # Where this cannot be read, nobody knows whether a job waits or runs.
    JobFolder(folder).submission()
    status = status_of(folder)
    if status.state in ACTIVE:
        raise ValueError(
            f"{folder} is {status.state}{f' as job {status.job}' if status.job else ''}, and two jobs in one folder "
            f"would spoil each other's files. `detr-container cancel {folder}` ends it"
        )
