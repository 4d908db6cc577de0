"""A short campaign: interruptions right after kills, one after another; and that it sees what is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from runs import environment_of
from slurm_campaign import Ways, campaign, left_behind
from slurm_cluster import MARK, cluster, missing

from detr_container.launch.attempts import JobFolder

KINDS = (
    "batch script and ranks killed",
    "SIGKILL of all processes, then preemption",
    "SIGKILL of all processes, then scontrol requeue",
)
"""Those that tests/jobs/test_slurm_jobs.py has not."""


@pytest.mark.long
@pytest.mark.xdist_group("slurm")
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_short_campaign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with cluster(folder / "cluster") as slurm:
            assert set(KINDS) < set(Ways(slurm).all())
            for name, value in {**slurm.environment, "OMP_NUM_THREADS": "1"}.items():
                monkeypatch.setenv(name, value)
            status = campaign(slurm, folder, len(KINDS), 1, within=6.0, kinds=KINDS)
        output = " ".join(capsys.readouterr().out.split())
        assert status == 0, output
        assert all(f"1 {kind}" in output for kind in KINDS)
        assert "left behind: nothing" in output
        history = JobFolder(folder / "soak-1" / "interrupted").history()
        assert history[-1].outcome == "finished"
        assert not any(attempt.own for attempt in history if attempt.outcome == "killed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_an_srun_may_take_its_time_but_not_stay(tmp_path: Path) -> None:
    """One of this cluster; another cluster's is none of ours."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    (tmp_path / "run").mkdir()
    (tmp_path / "srun").symlink_to(sleep)
    surroundings = {**os.environ, MARK: str(tmp_path)}
    with subprocess.Popen([tmp_path / "srun", "2"], env=surroundings) as slow:
        environment_of(slow.pid)
        assert left_behind(tmp_path / "run", tmp_path) == []
        assert slow.poll() is not None
    with subprocess.Popen([tmp_path / "srun", "60"], env=surroundings) as stays:
        environment_of(stays.pid)
        (tmp_path / "run" / ".lock").touch()
        assert left_behind(tmp_path / "run", tmp_path, 0.5) == [".lock", f"srun, process {stays.pid}"]
        assert left_behind(tmp_path / "run", tmp_path / "other", 0.5) == [".lock"]
        stays.kill()
