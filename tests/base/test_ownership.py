"""Whose word runs in whose name."""

import os
from pathlib import Path

import pytest

from detr_container.base.ownership import keep_own
from detr_container.launch.resources import Resources
from detr_container.launch.snapshot import take_snapshot
from detr_container.launch.submission import Submission

FIRST = "job/submissions/001"


@pytest.fixture
def submitted(tmp_path: Path) -> tuple[Submission, Path]:
    """A run that was submitted by somebody whose group may change what he writes."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("pass")
    before = os.umask(0)
    try:
        (tmp_path / "package" / "a.py").chmod(0o666)
        folder = tmp_path / "run" / "job" / "submissions" / "001"
        folder.mkdir(parents=True)
        code = take_snapshot(tmp_path / "package", folder / "code", {})
        plan = Submission(folder, "slurm", [str(tmp_path / "run")], Resources(), "", str(code), "", jobs=["7"])
        plan.write()
        plan.write_to_runs()
    finally:
        os.umask(before)
    return plan, tmp_path / "run"


def test_what_is_written_stays_ones_own(submitted: tuple[Submission, Path]) -> None:
    submission, run = submitted
    submission.refuse_foreign(run)


@pytest.mark.parametrize(
    "place", ["job/job.json", "job/submissions/001/submission.json", "job/submissions/001/code/package/a.py"]
)
def test_what_others_can_change_is_refused(place: str, submitted: tuple[Submission, Path]) -> None:
    submission, run = submitted
    (run / place).chmod(0o664)
    with pytest.raises(ValueError, match=rf"{place} can be changed by others than you.*chmod -R go-w"):
        submission.refuse_foreign(run)
    keep_own(run / place)
    submission.refuse_foreign(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    "place", ["job/job.json", "job/submissions/001/submission.json", "job/submissions/001/code/new.py"]
)
def test_what_is_anothers_is_refused(place: str, submitted: tuple[Submission, Path]) -> None:
    submission, run = submitted
    (run / place).touch()
    os.chown(run / place, 65534, 65534)
    with pytest.raises(ValueError, match=rf"{place} is .*'s, and what it says would run in your name: copy the run"):
        submission.refuse_foreign(run)
