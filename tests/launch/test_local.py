"""Jobs on this machine whose work is to count: what launching promises, without anything of detection."""

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import works

from detr_container.launch.resources import Resources
from detr_container.launch.submission import Submission, Work, next_folder
from detr_container.launch.submit import submit

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def jobs(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Submission]]:
    """Submits one job per given work; what still runs at the end is ended."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), str(TESTS)]))
    started: list[Submission] = []

    def start(*given: Callable[..., int], at_once: int = 0, **request: Any) -> Submission:
        folders = [str(tmp_path / f"run{number}") for number in range(len(given))]
        resources = Resources(**{"gpus_per_node": 0, **request})
        home = next_folder(tmp_path / "submissions")
        (home / "jobs").mkdir()
        plan = Submission(home, "local", folders, resources, "tick-*", str(repository), str(tmp_path))
        tasks: list[Work] = [functools.partial(work, folder) for work, folder in zip(given, folders, strict=True)]
        started.append(submit(plan, tasks, "test", at_once))
        return started[-1]

    yield start
    for submission in started:
        for name in submission.jobs:
            if psutil.pid_exists(int(name)):
                os.killpg(int(name), signal.SIGKILL)


def over(submission: Submission, seconds: float = 60) -> None:
    """Wait until all controllers have ended."""
    end = time.monotonic() + seconds
    while any(alive(name) for name in submission.jobs):
        assert time.monotonic() < end, f"not over after {seconds} s"
        time.sleep(0.05)


def alive(name: str) -> bool:
    """Whether a controller still runs; as our child it stays as a zombie."""
    try:
        return psutil.Process(int(name)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ticks(submission: Submission, index: int = 0) -> list[int]:
    """What has been counted."""
    return sorted(int(path.name[5:]) for path in Path(submission.folders[index]).glob("tick-*"))


def reach(submission: Submission, number: int) -> None:
    """Wait until so much has been counted."""
    end = time.monotonic() + 60
    while not ticks(submission) or ticks(submission)[-1] < number:
        assert time.monotonic() < end, f"not at {number}"
        time.sleep(0.02)


def history(submission: Submission, index: int = 0) -> list[tuple[str, str]]:
    """How each start ended, and why."""
    return [(a.outcome, a.why) for a in submission.job_folder(submission.folders[index]).history()]


def is_python(process: psutil.Process) -> bool:
    """Whether a process has become the Python that will run the work, loaded or not."""
    try:
        return process.name().startswith("python") and "submitit.core._submit" in process.cmdline()
    except psutil.Error:
        return False


def test_every_process_knows_its_place(jobs: Callable[..., Submission]) -> None:
    submission = jobs(works.show_place, tasks_per_node=2)
    over(submission)
    (job,) = submission.jobs
    lines = [(Path(submission.folders[0]) / f"place-{job}-0-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert lines[0][:5] == ["RANK=0", "LOCAL_RANK=0", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1"]
    assert lines[1][:2] == ["RANK=1", "LOCAL_RANK=1"]
    assert lines[0][5] == lines[1][5]
    assert history(submission) == [("finished", "")]


def test_a_time_limit_is_announced_and_the_job_resumes(jobs: Callable[..., Submission]) -> None:
    submission = jobs(functools.partial(works.count, seconds=0.1), time="1m", lead=55)
    over(submission)
    ends = history(submission)
    assert ends[-1] == ("finished", "")
    assert set(ends[:-1]) == {("stopped", "time limit")}
    assert ticks(submission) == list(range(1, works.TICKS + 1))


def test_a_preemption_and_a_kill(jobs: Callable[..., Submission]) -> None:
    submission = jobs(functools.partial(works.count, seconds=0.05), tasks_per_node=2)
    controller = psutil.Process(int(submission.jobs[0]))
    reach(submission, 10)
    controller.send_signal(signal.SIGUSR2)
    reach(submission, 30)
    controller.children()[1].kill()
    over(submission)
    assert history(submission) == [("stopped", "preemption"), ("killed", "killed"), ("finished", "")]
    assert ticks(submission) == list(range(1, works.TICKS + 1))


def test_a_signal_while_python_starts_is_not_lost(jobs: Callable[..., Submission]) -> None:
    submission = jobs(works.count)
    controller = psutil.Process(int(submission.jobs[0]))
    while not any(is_python(child) for child in controller.children()):
        time.sleep(0.001)
    controller.send_signal(signal.SIGUSR2)
    over(submission)
    assert history(submission) == [("stopped", "preemption"), ("finished", "")]


SIGNAL_AT_ONCE = """
import os, signal, subprocess, sys
if "detr_container.launch.local" in sys.orig_argv:
    start, told = subprocess.Popen.__init__, []
    def start_and_signal(self, command, *args, **options):
        start(self, command, *args, **options)
        if os.environ["LAUNCH_ATTEMPT"].endswith("-0") and not told:
            told.append(True)
            os.kill(os.getpid(), signal.SIGUSR2)
    subprocess.Popen.__init__ = start_and_signal
"""


def test_a_signal_while_the_processes_are_started_reaches_all(
    jobs: Callable[..., Submission], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_ONCE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [tmp_path, repository, TESTS])))
    submission = jobs(works.count, tasks_per_node=2)
    over(submission)
    assert history(submission) == [("stopped", "preemption"), ("finished", "")]
    assert ticks(submission) == list(range(1, works.TICKS + 1))


def test_cancelled(jobs: Callable[..., Submission]) -> None:
    submission = jobs(functools.partial(works.count, seconds=0.1))
    reach(submission, 3)
    os.kill(int(submission.jobs[0]), signal.SIGTERM)
    over(submission)
    assert history(submission) == [("stopped", "cancelled")]
    assert ticks(submission)[-1] < works.TICKS


def test_three_crashes(jobs: Callable[..., Submission]) -> None:
    submission = jobs(works.crash, tasks_per_node=2)
    over(submission)
    assert history(submission) == [("failed", "error")] * 3
    job = submission.job_folder(submission.folders[0])
    assert "RuntimeError: crashed on rank" in job.errors_path.read_text()
    assert "3 times in a row" in job.history()[-1].action


def test_one_that_fails_takes_those_with_it_that_wait(jobs: Callable[..., Submission]) -> None:
    submission = jobs(works.hang_beside_a_crash, tasks_per_node=2)
    over(submission)
    (attempt,) = submission.job_folder(submission.folders[0]).history()
    assert attempt.message.endswith("ValueError: setting=7 is wrong")
    assert attempt.final


def test_no_more_at_once_than_asked(jobs: Callable[..., Submission]) -> None:
    submission = jobs(*[functools.partial(works.count, seconds=0.005)] * 4, at_once=2)
    over(submission)
    spans = [a for i in range(4) for a in submission.job_folder(submission.folders[i]).history()]
    assert len(spans) == 4
    for span in spans:
        assert sum(other.began < span.began < other.ended for other in spans) <= 1
    assert max(sum(other.began <= span.began < other.ended for other in spans) for span in spans) == 2


def test_a_setup_that_fails(jobs: Callable[..., Submission], tmp_path: Path) -> None:
    submission = jobs(works.count, setup=("touch set-up", "false"))
    over(submission)
    assert (tmp_path / "set-up").exists()
    assert not ticks(submission)


def test_what_is_left_of_a_start_that_nobody_settled(jobs: Callable[..., Submission]) -> None:
    """The controller dies with everything; whoever submits again resumes it and reports what happened."""
    first = jobs(functools.partial(works.count, seconds=0.1))
    reach(first, 5)
    os.killpg(int(first.jobs[0]), signal.SIGKILL)
    os.waitpid(int(first.jobs[0]), 0)
    again = jobs(works.count)
    over(again)
    assert history(again) == [("killed", "node failure, or requeued without warning"), ("finished", "")]
    assert ticks(again) == list(range(1, works.TICKS + 1))


def gpus_of(submission: Submission, index: int) -> list[str]:
    """What each start of a job saw."""
    lines = (Path(submission.folders[index]) / "gpus-0").read_text().splitlines()
    return [line.split(" ")[1] for line in lines]


def test_every_run_has_its_own_gpus(
    jobs: Callable[..., Submission], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are named, by any kind of name; also after a crash, and beside another submission's runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-2ab,MIG-7/1/0,3,9,8")
    crashes = functools.partial(works.show_gpus, crash=True)
    several = jobs(crashes, works.show_gpus, works.show_gpus, at_once=2, gpus_per_node=2, tasks_per_node=1)
    over(several)
    first, second, third = (gpus_of(several, index) for index in range(3))
    assert len(first) == 2
    assert first[0] == first[1]
    assert {*first, *second} == {"5,GPU-2ab", "MIG-7/1/0,3"}
    assert third[0] in {*first, *second}


def test_more_runs_than_gpus_share_them_in_turns(
    jobs: Callable[..., Submission], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0,-1,2")
    submission = jobs(*[works.show_gpus] * 3, at_once=3, gpus_per_node=1)
    over(submission)
    seen = sorted(gpus_of(submission, index)[0] for index in range(3))
    assert seen in (["0", "0", "1"], ["0", "1", "1"])
    output = "".join(path.read_text() for path in (submission.folder / "jobs").glob("controller-*.log"))
    assert output.count("shared with 1 other run(s)") == 1


def test_who_asks_for_no_gpu_sees_none(
    jobs: Callable[..., Submission], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    submission = jobs(works.show_gpus)
    over(submission)
    assert gpus_of(submission, 0) == [""]
