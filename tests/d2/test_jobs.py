"""Trainings in detectron2's loop as jobs: they are queued, started again after a stop, and shown like runs."""

import os
import signal
import time
from pathlib import Path

import pytest
from detectron2_runs import lazy_config
from runs import run_command

pytest.importorskip("detectron2", reason="detectron2 is not installed: docs/detectron2.md says how")

import psutil

from detr_container.base.files import read_jsonl
from detr_container.d2.checkpoints import newest, numbered
from detr_container.d2.jobs import EVIDENCE
from detr_container.jobs.status import ACTIVE, status_of
from detr_container.launch.attempts import JobFolder

LOCAL = ("--cluster", "local", "--slurm.gpus-per-node", "0")


def test_the_batch_script_is_shown(tmp_path: Path) -> None:
    done = run_command(tmp_path, "d2", "submit", "detr_r50_50e", "train.max_iter=9", "--dry-run", "--slurm.time", "2h")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --time=120" in done.stdout
    # A process for the loader's four workers and one to train.
    assert "#SBATCH --cpus-per-task=5" in done.stdout
    assert not list(tmp_path.iterdir())


def test_in_this_process(tmp_path: Path, root: Path) -> None:
    config = lazy_config(tmp_path, root)
    words = ("d2", "submit", config.name, "train.max_iter=2", "--output-dir", "out", "--cluster", "debug")
    done = run_command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert status_of(tmp_path / "out").state == "finished"
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_a_stopped_job_is_started_again(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out"
    words = ("d2", "submit", lazy_config(tmp_path, root), "train.max_iter=120", "--output-dir", out, *LOCAL)
    done = run_command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert f"detr-container status {out}" in done.stdout
    end = time.monotonic() + 240
    while not numbered(out):
        assert time.monotonic() < end, (out / "job").exists()
        time.sleep(0.02)
    twice = run_command(tmp_path, *words)
    assert twice.returncode == 2
    assert "two jobs in one folder" in twice.stderr
    (first,) = (out / "job" / "attempts").iterdir()
    process = read_jsonl(next(first.glob("rank-*.jsonl")))[0]["pid"]
    if psutil.pid_exists(process):
        os.kill(process, signal.SIGUSR2)
    while status_of(out).state in ACTIVE:
        assert time.monotonic() < end
        time.sleep(0.05)
    history = JobFolder(out, EVIDENCE).history()
    assert [attempt.outcome for attempt in history] == ["stopped", "finished"], history
    assert status_of(out).state == "finished"
    assert newest(out) == out / "model_final.pth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataloader.train.total_batch_size=3", "--slurm.gpus-per-node", "2"], "is not divisible by 2 processes"),
        (["--slurm.nodes", "2"], "slurm.nodes=2: --cluster local is this machine alone"),
        (["train.max_itr=3"], "train.max_itr: the configuration has no such key; did you mean train.max_iter"),
    ],
)
def test_mistakes_are_found_before_anything_is_queued(
    tmp_path: Path, root: Path, words: list[str], message: str
) -> None:
    config = lazy_config(tmp_path, root)
    done = run_command(tmp_path, "d2", "submit", config, *words, "--output-dir", tmp_path / "out", "--cluster", "local")
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_detectron2_a_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_container.base.optional.find_spec", lambda name: None)
    for command in ("train", "submit"):
        done = run_command(tmp_path, "d2", command, "detr_r50_50e")
        assert done.returncode == 2
        assert "detectron2 is not installed" in done.stderr
        assert len(done.stderr.splitlines()) == 1
