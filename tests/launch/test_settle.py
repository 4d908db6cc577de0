"""The verdict on every way a start can end, from the files that its processes leave."""

from pathlib import Path

import pytest

from detr_container.files import read_jsonl
from detr_container.launch.attempts import JobFolder, RankRecord, fruitless
from detr_container.launch.settle import DEATHS, Circumstances, settle, settle_lost


def start(job: JobFolder, name: str, *ends: str | BaseException, world: int = 0) -> None:
    """A start whose ranks end as told: an outcome, an error, a signal's name, or `died`."""
    for rank, end in enumerate(ends):
        record = RankRecord(job, name, rank, world or len(ends))
        if isinstance(end, BaseException):
            record.fail(end)
        elif end.startswith("SIG"):
            record.end("stopped", end)
        elif end == "stopped":
            record.end("stopped", None)
        elif end != "died":
            record.end("finished")


def progress(job: JobFolder, step: int) -> None:
    """The run writes a checkpoint."""
    (job.run / f"checkpoint-{step:04d}").touch()


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path, "checkpoint-*")


PEER = ConnectionError("another process has ended")


@pytest.mark.parametrize(
    ("ends", "around", "outcome", "why", "again"),
    [
        (["finished", "finished"], Circumstances(), "finished", "", False),
        (["finished"], Circumstances(limit=True), "finished", "", False),
        (["SIGUSR2", "stopped"], Circumstances(), "stopped", "preemption", True),
        (["stopped", "SIGTERM"], Circumstances(limit=True), "stopped", "time limit", True),
        (["SIGTERM"], Circumstances(cancelled=True), "stopped", "cancelled", False),
        (["SIGINT"], Circumstances(), "stopped", "cancelled", False),
        (["SIGTERM"], Circumstances(restarted=True), "stopped", "requeued", True),
        (["died", PEER], Circumstances(), "killed", "killed", True),
        (["died", "died"], Circumstances(limit=True), "killed", "time limit", True),
        (["died"], Circumstances(cancelled=True), "killed", "cancelled", False),
        ([PEER, RuntimeError("out of memory")], Circumstances(), "failed", "error", True),
        ([ValueError("train.lr=-1"), PEER], Circumstances(), "failed", "error", False),
        ([FloatingPointError("NaN")], Circumstances(), "failed", "error", False),
        ([OSError(28, "no space")], Circumstances(), "failed", "error", False),
        ([OSError(5, "input/output error")], Circumstances(), "failed", "error", True),
        ([], Circumstances(), "killed", "error", True),
    ],
)
def test_verdicts(
    ends: list[str | BaseException], around: Circumstances, outcome: str, why: str, again: bool, job: JobFolder
) -> None:
    start(job, "1-0", *ends)
    attempt, wanted = settle(job, "1-0", around)
    assert (attempt.outcome, attempt.why) == (outcome, why)
    # What the scheduler does by itself is left to it.
    assert wanted == (again and not around.restarted)
    assert job.history() == [attempt]


def test_the_cause_is_named_before_its_consequences(job: JobFolder) -> None:
    try:
        raise RuntimeError("device-side assert")
    except RuntimeError as error:
        start(job, "1-0", PEER, PEER, error)
    attempt, _ = settle(job, "1-0", Circumstances())
    assert attempt.message.startswith("rank 2 on ")
    assert attempt.message.endswith("RuntimeError: device-side assert")
    told = job.errors_path.read_text()
    assert told.index("RuntimeError: device-side assert") < told.index("noticed that another process had ended")
    assert "test_settle.py" in told


def test_a_rank_that_never_began_is_counted(job: JobFolder) -> None:
    start(job, "1-0", PEER, world=4)
    attempt, _ = settle(job, "1-0", Circumstances())
    assert attempt.outcome == "killed"
    assert attempt.message == "3 process(es) never began."


def test_three_deaths_in_a_row_are_enough(job: JobFolder) -> None:
    for number in range(DEATHS):
        start(job, f"1-{number}", "died")
        attempt, again = settle(job, f"1-{number}", Circumstances())
        assert again == (number < DEATHS - 1)
    assert attempt.action == "not started again: it died 3 times in a row without getting on"
    assert job.errors_path.exists()


def test_a_run_that_gets_on_may_die_as_often_as_it_likes(job: JobFolder) -> None:
    for number in range(10):
        start(job, f"1-{number}", "died")
        progress(job, number)
        assert settle(job, f"1-{number}", Circumstances())[1]


def test_preemption_neither_counts_as_a_death_nor_forgives_one(job: JobFolder) -> None:
    ends = ["died", "SIGTERM", "SIGTERM", "died", "SIGTERM", "died"]
    wanted = []
    for number, end in enumerate(ends):
        start(job, f"1-{number}", end)
        wanted.append(settle(job, f"1-{number}", Circumstances())[1])
    assert wanted == [True, True, True, True, True, False]
    assert fruitless(job.history()) == 3


def test_starts_that_nobody_settled(job: JobFolder) -> None:
    """The machine died with its batch script."""
    start(job, "1-0", "died", "died")
    progress(job, 1)
    start(job, "1-1", "died", "died")
    settle_lost(job, "1-1")
    (attempt,) = job.history()
    assert (attempt.name, attempt.outcome, attempt.why) == (
        "1-0",
        "killed",
        "node failure, or requeued without warning",
    )
    settle_lost(job, "1-1")
    assert len(job.history()) == 1


def test_the_fourth_start_after_three_lost_ones_is_refused(job: JobFolder) -> None:
    for number in range(DEATHS):
        start(job, f"1-{number}", "died")
        if number:
            settle_lost(job, f"1-{number}")
    start(job, "1-3", "died")
    with pytest.raises(ValueError, match=r"died 3 times in a row without getting on, so it is not started again"):
        settle_lost(job, "1-3")


def test_a_record_cut_short_is_read_as_far_as_it_goes(job: JobFolder) -> None:
    start(job, "1-0", "finished")
    path = next(job.folder.glob("attempts/1-0/*"))
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_jsonl(path)) == 1
    assert settle(job, "1-0", Circumstances())[0].outcome == "killed"
