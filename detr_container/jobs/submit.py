"""Training runs as jobs: what is checked before anything is queued, and what each process of a job then calls."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detr_container.base.files import refuse_links, write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.terminal import start_logging
from detr_container.config import settings as config
from detr_container.config.settings import Experiment
from detr_container.engine.run import WRITTEN, Run, changes
from detr_container.launch import queue
from detr_container.launch.attempts import JobFolder
from detr_container.launch.resources import Resources, cluster_facts
from detr_container.launch.snapshot import take_snapshot
from detr_container.launch.submission import Submission, Where, Work, next_folder
from detr_container.launch.submit import script
from detr_container.launch.submit import submit as launch

from .status import ACTIVE, RunStatus, status_of

CLUSTER = "DETR_CONTAINER_CLUSTER"
EVIDENCE = "checkpoints/checkpoint-*.pt"
"""A run that gets on writes checkpoints."""


@dataclass(frozen=True)
class PlannedRun:
    """One run to submit."""

    folder: Path
    experiment: Experiment


def cluster_file() -> Path:
    """Where a group writes its cluster's facts: the file that DETR_CONTAINER_CLUSTER names, or the person's own."""
    named = os.environ.get(CLUSTER)
    if named:
        if not Path(named).is_file():
            raise ValueError(f"{CLUSTER}={named}: there is no such file")
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "detr-container" / "cluster.toml"


def usual_resources() -> Resources:
    """The cluster file's request, or the general one."""
    return cluster_facts(cluster_file())


def run_training(settings: dict[str, Any], folder: str, stop: StopRequest) -> int:
    """What every process of a job calls."""
    start_logging()
    from detr_container.engine.train import train

    return train(config.from_dict(settings), Path(folder), stop)


Training = Callable[[dict[str, Any], str, StopRequest], int]


def submit(
    runs: Sequence[PlannedRun],
    home: Path,
    resources: Resources,
    where: Where,
    *,
    at_once: int = 0,
    code: Path | None = None,
    workdir: Path | None = None,
    work: Training = run_training,
) -> Submission:
    """Submit runs: one as a job, several as an array of which at most `at_once` run at a time.

    home: the folder that keeps the submission; code: a copy of the code to use again; workdir: the folder to which
    relative paths in the settings refer; work: what each process calls with a run's settings and folder.
    Raises ValueError for what can be known before anything is queued.
    """
    check(runs, resources, where)
    works = [functools.partial(work, config.to_dict(run.experiment), str(run.folder.absolute())) for run in runs]
    submission = hand_over(
        plan(runs, home, resources, where, code, workdir), home, works, _job_name(runs), at_once, copy=code is None
    )
    for run in runs:
        # What `resubmit` starts from, until the job itself writes it; which may have happened already.
        if not Run(run.folder).exists:
            write_json(Run(run.folder).config_path, config.to_dict(run.experiment))
    return submission


def hand_over(
    planned: Submission, home: Path, works: Sequence[Work], name: str, at_once: int = 0, copy: bool = True
) -> Submission:
    """Queue works under `name` in a new numbered folder of `home`; where that fails, nothing of it is left.

    planned: the submission but for its folder, and but for its code where a copy is made of it now.
    """
    folder = next_folder(home.absolute())
    submission = replace(planned, folder=folder, code=str(folder / "code") if copy else planned.code)
    (folder / "jobs").mkdir()
    try:
        if copy:
            take_copy(folder / "code")
        return launch(submission, works, name, at_once)
    except (ValueError, OSError):
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            # A run that was to be made leaves no trace; another keeps what it has.
            for empty in (home, home.parent, home.parent.parent):
                empty.rmdir()
        raise


def plan(
    runs: Sequence[PlannedRun],
    home: Path,
    resources: Resources,
    where: Where,
    code: Path | None = None,
    workdir: Path | None = None,
) -> Submission:
    """The submission that would be made, in a folder that does not exist yet."""
    if not resources.cpus_per_task:
        # Slurm's own default of one core would starve the loader's processes.
        cpus = max(run.experiment.loader_workers for run in runs) + 1
        resources = replace(resources, cpus_per_task=cpus)
    folder = home.absolute() / "NNN"
    return Submission(
        folder=folder,
        where=where,
        folders=[str(run.folder.absolute()) for run in runs],
        resources=resources,
        evidence=EVIDENCE,
        code=str(code or folder / "code"),
        workdir=str((workdir or Path()).absolute()),
    )


def dry_run(runs: Sequence[PlannedRun], home: Path, resources: Resources, at_once: int = 0) -> str:
    """The batch script that `submit` would hand to sbatch."""
    resources.validate()
    return script(plan(runs, home, resources, "slurm"), _job_name(runs), len(runs), at_once)


def check(runs: Sequence[PlannedRun], resources: Resources, where: Where) -> None:
    """Raise ValueError for what is wrong with runs and request, as far as it can be known without starting them."""
    folders = [folder for run in runs for folder in (run.folder, *run.experiment.data_folders)]
    check_place(folders, resources, where)
    world = 1 if where == "debug" else resources.nodes * resources.tasks
    for run in runs:
        check_run(run, world)


def check_place(folders: Sequence[Path], resources: Resources, where: Where) -> None:
    """Raise ValueError where a request does not fit its place, or that does not see these folders."""
    resources.validate()
    if where == "local" and resources.nodes > 1:
        raise ValueError(f"slurm.nodes={resources.nodes}: --cluster local is this machine alone; use 1")
    if where == "slurm":
        queue.check_request(resources, sorted({Path(sys.prefix), *(folder.absolute() for folder in folders)}))


def check_run(run: PlannedRun, world: int) -> None:
    """Raise ValueError when a run cannot be trained by so many processes, or not in its folder."""
    _check_settings(run.experiment, world)
    check_folder(run)


def _check_settings(experiment: Experiment, world: int) -> None:
    """What the run itself would refuse, hours later."""
    train = experiment.train
    config.validate(experiment)
    # 0 becomes a number where the run starts; it may be 1.
    least = (train.micro_batch or 1) * world
    if train.batch % least:
        raise ValueError(
            f"train.batch={train.batch} is not divisible by {world} process(es) x train.micro_batch="
            f"{train.micro_batch}: make it a multiple of {least}, or ask for fewer GPUs"
        )
    experiment.check_data()
    for name, path in experiment.inputs.items():
        if not path.exists():
            raise ValueError(f"{name}={path}: there is no such file or folder")


def check_folder(planned: PlannedRun, status: RunStatus | None = None) -> None:
    """Raise ValueError or OSError when the run is active already, is another, has nothing left to do, or is damaged.

    status: the run's, where that is known.
    """
    refuse_links(planned.folder, WRITTEN)
    # Where this cannot be read, nobody knows whether a job of the run waits or runs.
    JobFolder(planned.folder).submission()
    run, folder = Run(planned.folder), planned.folder
    status = status or status_of(folder)
    if run.exists:
        before = run.experiment()
        changes(run.config_path, before, planned.experiment)
        if status.state == "finished" and planned.experiment.train.epochs <= before.train.epochs:
            raise ValueError(
                f"{folder} is finished: {status.step} steps, {before.train.epochs} epochs. Train for longer with "
                f"`detr-container resubmit {folder} --train.epochs N`, or name another run with --run"
            )
    if planned.experiment.train.epochs < status.epoch:
        raise ValueError(
            f"train.epochs={planned.experiment.train.epochs}: {folder} has done {status.epoch:.1f} already; "
            "ask for more"
        )
    if status.state in ACTIVE:
        raise ValueError(
            f"{folder} is {status.state}{f' as job {status.job}' if status.job else ''}, and two jobs in one folder "
            f"would spoil each other's files. `detr-container cancel {folder}` ends it"
        )


def take_copy(target: Path) -> Path:
    """Copy the code as it is now."""
    from detr_container.engine.provenance import code_version

    package = Path(__file__).resolve().parents[1]
    return take_snapshot(package, target, {"git": code_version()})


def _job_name(runs: Sequence[PlannedRun]) -> str:
    folder = runs[0].folder.absolute()
    return folder.name if len(runs) == 1 else folder.parent.name
