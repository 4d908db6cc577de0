"""A submission: one job, or an array of jobs, with the code, the request and the logs that belong to it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from detr_container.base.alive import mark
from detr_container.base.checked import PathText, Schema, read_json
from detr_container.base.files import make_folder, write_json
from detr_container.base.interrupt import StopRequest
from detr_container.base.lock import Seconds
from detr_container.base.ownership import keep_own, refuse_foreign

from .attempts import JobFolder, JobName
from .resources import Resources, minutes, resources_of

Where = Literal["slurm", "local", "debug"]
Work = Callable[[StopRequest], int]
"""What each process of a job calls: it returns 0 when the work is done, anything else when it was asked to stop."""
ATTEMPT = "LAUNCH_ATTEMPT"
"""The variable that holds the name of a start of a job, for every process of it."""
_FILE = "submission.json"


class SubmissionFile(Schema):
    """submission.json."""

    where: Where
    folders: list[PathText]
    resources: dict[str, Any]
    evidence: PathText
    code: PathText
    workdir: PathText
    time: Seconds
    jobs: list[JobName]


@dataclass(frozen=True)
class Submission:
    """What was submitted together, as `folder/submission.json` has it.

    folders: the run folder of each job; evidence: see `JobFolder`; code: the folder with the copied package; jobs:
    their names in the queue (of a local job, the process id of its controller).
    """

    folder: Path
    where: Where
    folders: list[str]
    resources: Resources
    evidence: str
    code: str
    workdir: str
    time: float = field(default_factory=time.time)
    jobs: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The submission in a folder. Raises ValueError when there is none that can be read."""
        path = folder / _FILE
        try:
            content = read_json(path, SubmissionFile)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): put back a copy of it") from error
        content = {name: content[name] for name in SubmissionFile.model_fields}
        return cls(folder=folder, **{**content, "resources": resources_of(content["resources"], path)})

    def write(self) -> None:
        """Keep it, where its jobs will look for it."""
        write_json(self.folder / _FILE, {name: value for name, value in asdict(self).items() if name != "folder"})
        keep_own(self.folder / _FILE)

    def refuse_foreign(self, run: Path) -> None:
        """Raise ValueError unless what would run on account of this submission of `run` is this person's alone."""
        remedy = f"copy the run (cp -r {run} MINE; rm -r MINE/job), and `detr-container resubmit MINE` resumes the copy"
        job = self.job_folder(run).folder / "job.json"
        refuse_foreign([job, self.folder / _FILE, Path(self.code)], remedy)

    def write_to_runs(self) -> None:
        """Leave in every run's folder which submission it belongs to."""
        for index, (run, job) in enumerate(zip(self.folders, self.jobs, strict=True)):
            facts = {"submission": str(self.folder), "where": self.where, "index": index, "job": job}
            facts["host"] = platform.node()
            if self.where == "local":
                # Its number will be another process's one day.
                facts["process"] = mark(int(job))
            self.job_folder(run).describe(facts)
            keep_own(self.job_folder(run).folder / "job.json")

    def job_folder(self, run: str | Path) -> JobFolder:
        """What launching keeps in a run's folder."""
        return JobFolder(Path(run), self.evidence)

    def log(self, index: int, rank: int) -> Path:
        """The file that one process of one of the jobs prints to."""
        return self.folder / "jobs" / f"{self.jobs[index]}_{rank}_log.out"

    @property
    def seconds(self) -> int:
        """The time limit."""
        return 60 * minutes(self.resources.time)


def attempt_name() -> str:
    """The name of the start of a job that this process belongs to."""
    return os.environ[ATTEMPT]


def next_folder(parent: Path) -> Path:
    """A new numbered folder."""
    make_folder(parent)
    number = max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0)
    while True:
        number += 1
        try:
            (parent / f"{number:03d}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{number:03d}"
