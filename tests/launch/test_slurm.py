"""Jobs of a real Slurm whose work is to count: each kind of interruption is survived, without anything of detection."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import works
from interruptions import INTERRUPTIONS
from slurm_cluster import Cluster, cluster, missing

from detr_container.launch.resources import Resources
from detr_container.launch.submission import Submission, next_folder
from detr_container.launch.submit import submit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def slurm(repository: Path) -> Iterator[Cluster]:
    """A cluster of two nodes, reachable from this process and those it starts."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with cluster(folder) as running, pytest.MonkeyPatch.context() as patch:
            path = os.pathsep.join([str(repository), str(TESTS)])
            for name, value in {**running.environment, "PYTHONPATH": path}.items():
                patch.setenv(name, value)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(("interrupt", "outcome", "reason"), INTERRUPTIONS)
def test_an_interrupted_job_resumes_where_it_was(
    interrupt: Callable[[Cluster, str, Path], None],
    outcome: str,
    reason: str,
    slurm: Cluster,
    tmp_path: Path,
    repository: Path,
) -> None:
    run, home = tmp_path / "run", next_folder(tmp_path / "submissions")
    (home / "jobs").mkdir()
    resources = Resources(nodes=2, gpus_per_node=1, time="10m")
    plan = Submission(home, "slurm", [str(run)], resources, "tick-*", str(repository), str(tmp_path))
    submission = submit(plan, [functools.partial(works.count, str(run), seconds=0.1)], "count")
    job = submission.job_folder(run)

    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, f"{job.history()}\n{slurm.log()}"
            time.sleep(0.1)

    wait_until((run / "tick-00020").exists)
    interrupt(slurm, submission.jobs[0], run)
    wait_until(lambda: bool(job.history()) and job.history()[-1].outcome == "finished")
    assert [(each.outcome, each.why) for each in job.history()] == [(outcome, reason), ("finished", "")]
    assert len(list(run.glob("tick-*"))) == works.TICKS
    # The second start counted on, rather than from the beginning.
    assert (run / "tick-00001").stat().st_mtime < job.history()[0].ended
