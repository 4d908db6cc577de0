"""Runs' folders with something else in the place of what belongs there: links, others' jobs, numbers given anew."""

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import settings_of, tiny, train_in

from detr_container.base.alive import mark
from detr_container.base.files import write_json
from detr_container.commands import cli
from detr_container.config.settings import to_dict
from detr_container.engine.run import Run
from detr_container.launch.resources import Resources
from detr_container.launch.submission import Submission

PLACES = (
    *(".lock", "config.json", "metrics.jsonl", "evaluations.jsonl", "provenance.jsonl", "classes.json", "curves.png"),
    *("checkpoints", "detections", "tensorboard", "job", "job/job.json", "detections/epoch-001"),
    "checkpoints/checkpoint-00000008.pt",
)


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_written_through_a_link(
    place: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by training nor by submitting; the link, what it leads to, and the rest stay as they were."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    content = "mine"
    if place == "config.json":
        write_json(elsewhere, to_dict(tiny(root)))
        content = elsewhere.read_text()
    elif "." in place:
        elsewhere.write_text(content)
    else:
        elsewhere.mkdir()
        (elsewhere / "checkpoint-00000001.pt").write_text(content)
    link = tmp_path / "runs" / "a" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    options = ["debug", "--run", "a", *settings_of(tiny(root))]
    for command in (["train", *options], ["submit", *options, "--cluster", "local", "--slurm.gpus-per-node", "0"]):
        assert cli.main(command) == 2
        assert f"runs/a/{place} is a symbolic link to {elsewhere}" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
        kept = elsewhere if elsewhere.is_file() else elsewhere / "checkpoint-00000001.pt"
        assert kept.read_text() == content


def test_the_folder_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert train_in(tmp_path / "run", tiny(root, train__max_steps=1)) == 0
    assert Run(tmp_path / "disk").checkpoints().paths()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any job, though its command reads like one's."""
    process = subprocess.Popen(["/bin/sh", "-c", "sleep 60; : detr_container.launch.local"])
    yield process
    process.kill()
    process.wait()


def submitted(run: Path, job: int, process: str) -> Submission:
    """A run's folder as a local job leaves it."""
    folder = run / "job" / "submissions" / "001"
    folder.mkdir(parents=True)
    plan = Submission(folder, "local", [str(run)], Resources(), "", str(run), str(run), jobs=[str(job)])
    plan.write()
    facts = {"submission": str(folder), "where": "local", "index": 0, "job": str(job), "host": platform.node()}
    write_json(run / "job" / "job.json", {**facts, "process": process})
    return plan


@pytest.mark.parametrize("known", ["another start", ""])
def test_cancel_leaves_alone_who_has_the_number_now(
    known: str, tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the start of the process that was meant; and from a version that kept the number alone."""
    submitted(tmp_path / "run", sleeper.pid, f"{mark(sleeper.pid)}0" if known else "")
    status = cli.main(["cancel", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (status, "nothing to cancel" in out) == (0, True) or "nothing was signalled" in err
    assert sleeper.poll() is None
    assert not (tmp_path / "run" / "job" / "cancelled").exists()


def test_cancel_reaches_the_process_that_is_meant(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    submitted(tmp_path / "run", sleeper.pid, mark(sleeper.pid))
    assert cli.main(["cancel", str(tmp_path / "run")]) == 0
    assert sleeper.wait(timeout=10) == -15


@pytest.mark.parametrize("command", [["resubmit"], ["cancel"]])
def test_what_others_could_have_written_is_not_run(
    command: list[str],
    root: Path,
    tmp_path: Path,
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    submission = submitted(run, sleeper.pid, mark(sleeper.pid))
    write_json(run / "config.json", to_dict(tiny(root)))
    (submission.folder / "submission.json").chmod(0o666)
    before = sorted(run.rglob("*"))
    assert cli.main([*command, "run"]) == 2
    assert "submission.json can be changed by others than you" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert sleeper.poll() is None
    if os.geteuid() == 0:
        (submission.folder / "submission.json").chmod(0o644)
        os.chown(submission.folder / "submission.json", 65534, 65534)
        assert cli.main([*command, "run"]) == 2
        assert "and what it says would run in your name: copy the run" in capsys.readouterr().err
