"""Runs as jobs on this machine, through submitit's local and debug executors and the program's own commands."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import REPOSITORY, assert_same_run, environment, run_command, settings_of, tiny

from detr_container.base.files import read_jsonl, write_json
from detr_container.base.lock import FolderLock
from detr_container.config.experiments import named
from detr_container.config.settings import difference
from detr_container.jobs.status import ACTIVE, RunStatus, status_of
from detr_container.jobs.submit import PlannedRun, check_run
from detr_container.jobs.sweep import planned_runs, with_settings
from detr_container.launch.attempts import JobFolder

LOCAL = ["--cluster", "local", "--slurm.gpus-per-node", "0"]


def experiment_options(root: Path, epochs: int, **changed: Any) -> list[str]:
    """The debug experiment with everything that could carry a state from one step to the next."""
    hard: dict[str, Any] = {"head__dropout": 0.1, "train__ema_decay": 0.9, "train__micro_batch": 1}
    return settings_of(tiny(root, train__epochs=epochs, train__eval_every=epochs, **{**hard, **changed}))


def submit(folder: Path, root: Path, name: str, *options: str, epochs: int = 16) -> Path:
    """Submit to this machine; returns the run's folder."""
    done = run_command(folder, "submit", "debug", "--run", name, *LOCAL, *experiment_options(root, epochs), *options)
    assert done.returncode == 0, done.stderr
    assert "submitted local job" in done.stdout
    return folder / "runs" / name


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not {what} after {seconds} s"
        time.sleep(0.05)


def end_of(run: Path) -> RunStatus:
    """The status of a run once it neither runs nor waits."""
    wait_until(lambda: status_of(run).state not in ACTIVE, "over")
    return status_of(run)


def steps(run: Path) -> int:
    """How far a run is."""
    return status_of(run).step


def reached(run: Path, step: int) -> bool:
    """Whether a run is so far."""
    return steps(run) >= step


def settled(run: Path, starts: int) -> bool:
    """Whether more starts than these have ended."""
    return len(JobFolder(run).history()) > starts


def controller(run: Path) -> psutil.Process:
    """The process that looks after a local job."""
    facts = JobFolder(run).submission()
    assert facts is not None
    return psutil.Process(int(facts["job"]))


def log_of(run: Path) -> str:
    """All that a run's processes wrote."""
    return "\n".join(path.read_text() for path in sorted(run.glob("job/submissions/*/jobs/*log*")))


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on two processes that nobody interrupted."""
    folder = tmp_path_factory.mktemp("jobs")
    run = submit(folder, root, "uninterrupted", "--slurm.tasks-per-node", "2")
    assert end_of(run).state == "finished", log_of(run)
    return folder


def test_interruptions_change_nothing(place: Path, root: Path) -> None:
    """A process killed, and what a preemption looks like."""
    run = submit(place, root, "interrupted", "--slurm.tasks-per-node", "2")
    for number, at in enumerate((8, 30)):
        wait_until(functools.partial(reached, run, at), f"at step {at}")
        if number == 0:
            controller(run).children()[1].kill()
        else:
            controller(run).send_signal(signal.SIGUSR2)
        wait_until(functools.partial(settled, run, number), "settled")
    assert end_of(run).state == "finished", log_of(run)
    history = JobFolder(run).history()
    assert [attempt.why for attempt in history] == ["killed", "preemption", ""]
    assert re.match(r"rank 1 on \S+ ended without a word", history[0].message)
    shown = run_command(place, "status", "runs/interrupted").stdout
    assert "1 killed, 1 preemption" in shown
    assert_same_run(run, place / "runs" / "uninterrupted")
    events = list((run / "tensorboard").iterdir())
    assert len(events) == 3


@pytest.mark.long
def test_cancelled_and_resubmitted_for_longer(root: Path, tmp_path: Path) -> None:
    """With a schedule that does not depend on its length, it ends as if it had been asked for so long at once."""
    constant = {"train__schedule": "step", "train__lr_drop": 1000}
    options = experiment_options(root, 200, **constant)
    done = run_command(tmp_path, "submit", "debug", "--run", "a", *LOCAL, *options)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "a"
    wait_until(lambda: steps(run) >= 10, "at step 10")
    twice = run_command(tmp_path, "submit", "debug", "--run", "a", *LOCAL, *options)
    assert twice.returncode == 2
    assert re.search(r"runs/a is running as job \d+, and two jobs in one folder", twice.stderr)
    assert run_command(tmp_path, "cancel", "runs/a").returncode == 0
    assert end_of(run).state == "cancelled"
    done_steps = steps(run)
    assert "nothing to cancel, it is cancelled" in run_command(tmp_path, "cancel", "runs/a").stdout
    epochs = done_steps // 4 + 4
    longer = run_command(
        tmp_path, "resubmit", "runs/a", "--train.epochs", str(epochs), "--train.eval-every", str(epochs)
    )
    assert longer.returncode == 0, longer.stderr
    assert end_of(run).state == "finished", log_of(run)
    again = run_command(tmp_path, "submit", "debug", "--run", "a", *LOCAL, *experiment_options(root, 5, **constant))
    assert again.returncode == 2
    assert "runs/a is finished" in again.stderr
    other = experiment_options(root, 300, **constant)
    other[other.index("--head.dropout") + 1] = "0.2"
    changed = run_command(tmp_path, "submit", "debug", "--run", "a", *LOCAL, *other)
    assert changed.returncode == 2
    assert "another model or loss: head.dropout was 0.1, now 0.2" in changed.stderr
    whole = run_command(
        tmp_path, "submit", "debug", "--run", "b", *LOCAL, *experiment_options(root, epochs, **constant)
    )
    assert whole.returncode == 0, whole.stderr
    assert end_of(tmp_path / "runs" / "b").state == "finished"
    assert_same_run(run, tmp_path / "runs" / "b")


def test_an_error_on_one_rank_is_reported_in_one_place(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(root, bad)
    image = sorted((bad / "train2017").iterdir())[5]
    image.write_bytes(image.read_bytes()[:100])
    run = submit(tmp_path, bad, "bad", "--slurm.tasks-per-node", "2")
    now = end_of(run)
    assert now.state == "failed"
    assert str(image) in now.message
    assert "not started again: it would fail in the same way" in now.message
    assert len(JobFolder(run).history()) == 1
    shown = run_command(tmp_path, "status", "runs/bad").stdout
    assert "Traceback" in shown
    assert re.search(r"rank [01] on \S+ \(process \d+\)", shown)
    assert shown.count(str(image)) >= 2


def test_three_deaths_before_it_gets_anywhere(root: Path, tmp_path: Path) -> None:
    """Too little memory to import torch."""
    run = submit(tmp_path, root, "small", "--slurm.setup", "ulimit -v 600000", epochs=1)
    now = end_of(run)
    assert now.state == "failed"
    assert "it died 3 times in a row without getting on" in now.message
    assert len(JobFolder(run).history()) == 3
    done = run_command(tmp_path, "resubmit", "runs/small", "--slurm.setup", "true", "--train.epochs", "2")
    assert done.returncode == 0, done.stderr
    assert end_of(run).state == "finished", log_of(run)


def test_an_edit_changes_no_queued_run(root: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "detr_container", checkout / "detr_container")
    options = ["--run", "a", *LOCAL, "--slurm.setup", "sleep 2", *experiment_options(root, 2)]
    line = [sys.executable, "-P", "-m", "detr_container", "submit", "debug", *options]
    surroundings = environment(PYTHONPATH=str(checkout))
    done = subprocess.run(
        line, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    edited = checkout / "detr_container" / "engine" / "trainer.py"
    assert edited.exists()
    edited.write_text("raise SyntaxError('half an edit')")
    run = tmp_path / "runs" / "a"
    assert end_of(run).state == "finished", log_of(run)
    (row,) = read_jsonl(run / "provenance.jsonl")
    assert row["git"]["copied_from"] == str(checkout / "detr_container")
    assert len(row["git"]["sha256"]) == 64
    # Nor one that is resumed, unless it is asked for.
    again = run_command(tmp_path, "resubmit", "runs/a", "--train.epochs", "3")
    assert again.returncode == 0, again.stderr
    assert end_of(run).state == "finished"
    assert steps(run) == 12


def test_a_job_that_becomes_another_program_is_not_over(tmp_path: Path) -> None:
    """As its shell does, but again and again: in between, the system knows no command line of it."""
    script = tmp_path / "again.sh"
    script.write_text('exec /bin/sh "$0" detr_container.launch.local\n')
    process = subprocess.Popen(["/bin/sh", str(script), "detr_container.launch.local"])
    try:
        facts = {"submission": "", "where": "local", "index": 0, "job": str(process.pid), "host": platform.node()}
        write_json(tmp_path / "run" / "job" / "job.json", facts)
        assert {status_of(tmp_path / "run").state for _ in range(100)} == {"queued"}
    finally:
        process.kill()
        process.wait()


def test_two_processes_in_one_folder(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    with FolderLock(run):
        done = run_command(tmp_path, "train", "debug", "--run", "a", *experiment_options(root, 1))
        assert done.returncode == 2
        assert re.search(rf"runs/a is in use by process {os.getpid()} on", done.stderr)
        assert status_of(run).state == "running"


def test_in_this_process(root: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path, "submit", "debug", "--run", "a", "--cluster", "debug", *experiment_options(root, 2))
    assert done.returncode == 0, done.stderr
    assert "step 2/8" in done.stderr
    assert status_of(tmp_path / "runs" / "a").state == "finished"


def test_the_script_is_shown_without_a_cluster(root: Path, tmp_path: Path) -> None:
    facts = tmp_path / "cluster.toml"
    facts.write_text('partition = "a100"\ngpus_per_node = 4\ntime = "12h"\nsetup = ["module load cuda"]\n')
    options = ["--slurm.nodes", "2", "--slurm.account", "vision", "--slurm.extra", "reservation=night"]
    options += ["--dry-run", "--train.batch", "16"]
    done = run_command(tmp_path, "submit", "debug", *options, DETR_CONTAINER_CLUSTER=str(facts))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for option in (
        "--partition=a100",
        "--nodes=2",
        "--gpus-per-node=4",
        "--ntasks-per-node=4",
        "--time=720",
        "--account=vision",
        "--reservation=night",
        "--signal=USR2@120",
        "--requeue",
    ):
        assert f"#SBATCH {option}" in lines
    assert lines.index("module load cuda") < next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster", "local", "--slurm.nodes", "2"], r"slurm\.nodes=2: --cluster local is this machine alone"),
        (["--cluster", "local", "--slurm.gpus-per-node", "3"], r"train\.batch=4 is not divisible by 3 process"),
        (["--cluster", "local", "--slurm.time", "soon"], r"a time of 'soon'"),
        (["--cluster", "local", "--data.root", "nowhere"], r"missing: the images nowhere/train2017"),
        (["--cluster", "local", "--init", "none.pth"], r"init=none\.pth: there is no such file"),
        (["--slurm.nodes", "1"], r"there is no sinfo on this machine: .*--cluster local"),
    ],
)
def test_what_can_be_known_is_refused_at_once(options: list[str], message: str, root: Path, tmp_path: Path) -> None:
    nowhere = f"{Path(sys.executable).parent}"
    done = run_command(tmp_path, "submit", "debug", *experiment_options(root, 2), *options, PATH=nowhere)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_cluster_file_that_is_not_there(root: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path, "submit", "debug", "--dry-run", DETR_CONTAINER_CLUSTER="none.toml")
    assert (done.returncode, done.stderr) == (2, "error: DETR_CONTAINER_CLUSTER=none.toml: there is no such file\n")


def test_a_sweep_one_after_the_other(root: Path, tmp_path: Path) -> None:
    line = ["sweep", "lr", "--experiments", "debug", "--seeds", "0", "--grid", "train.lr=1e-4,3e-4"]
    common = [f"data.root={root}", "data.make-shapes=0 0 0", "data.workers=0", "train.epochs=1", "device=cpu"]
    line += ["--set", *common, *LOCAL]
    shown = run_command(tmp_path, *line, "--dry-run")
    assert "#SBATCH --array=0-1%1" in shown.stdout, shown.stderr
    done = run_command(tmp_path, *line)
    assert "submitted 2 of 2 runs" in done.stdout, done.stderr
    assert "left alone" in run_command(tmp_path, *line).stdout
    runs = sorted((tmp_path / "runs" / "lr").glob("debug*"))
    assert [path.name for path in runs] == ["debug-lr=1e-4-seed0", "debug-lr=3e-4-seed0"]
    attempts = []
    for run in runs:
        assert end_of(run).state == "finished", log_of(run)
        attempts += JobFolder(run).history()
    attempts.sort(key=lambda attempt: attempt.began)
    assert attempts[0].ended <= attempts[1].began
    assert "nothing to submit" in run_command(tmp_path, *line).stdout
    assert run_command(tmp_path, "status").stdout.count("finished") == 2


def test_the_runs_of_a_grid() -> None:
    runs = planned_runs(Path("runs/x"), ["debug", "demo"], ["train.lr=1e-4,2e-4"], [3, 4], ["train.epochs=7"])
    assert len(runs) == 8
    first = runs[0]
    assert first.folder == Path("runs/x/debug-lr=1e-4-seed3")
    assert difference(named("debug").experiment, first.experiment) == {
        "train.lr": (3e-4, 1e-4),
        "train.epochs": (2, 7),
        "seed": (0, 3),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["debgu"], [], [0], []), "did you mean debug"),
        ((["debug"], ["train.lrr=1"], [0], []), r"there is no setting 'train\.lrr'"),
        ((["debug"], ["lr=1"], [0], []), r"did you mean train\.lr\?"),
        ((["debug"], ["train.lr"], [0], []), "write setting=value"),
        ((["debug"], ["train.lr=fast"], [0], []), "train.lr=fast: a value does not fit"),
        ((["debug"], ["head.pre-norm=1"], [0], []), "head.pre-norm=1: it is true or false"),
        ((["debug"], ["train.lr=1e-4,1e-4"], [0], []), "in the grid twice"),
        ((["debug"], [], [], []), "at least one of --seeds"),
    ],
)
def test_grids_that_cannot_be(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned_runs(Path("x"), *arguments)


def test_settings_of_several_values() -> None:
    changed = with_settings(named("debug").experiment, [("data.scales", "48 64"), ("data.root", "x")])
    assert changed.data.scales == (48, 64)
    assert changed.data.root == Path("x")


def test_settings_that_are_switches() -> None:
    changed = with_settings(named("debug").experiment, [("backbone.dilation", "True"), ("loss.auxiliary", "false")])
    assert changed.backbone.dilation
    assert not changed.loss.auxiliary


def test_a_run_may_start_from_a_folder_of_weights(root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "hugging-face"
    weights.mkdir()
    experiment = with_settings(named("debug").experiment, [("data.root", str(root)), ("init", str(weights))])
    check_run(PlannedRun(tmp_path / "run", experiment), 1)


def test_status_where_there_is_nothing(tmp_path: Path) -> None:
    assert run_command(tmp_path, "status").stdout == "no runs in runs\n"
    wrong = run_command(tmp_path, "status", "runs/none")
    assert wrong.returncode == 2
    assert "runs/none is not a run's folder" in wrong.stderr


def test_logs_of_a_run_that_was_not_submitted(root: Path, tmp_path: Path) -> None:
    assert run_command(tmp_path, "train", "debug", "--run", "a", *experiment_options(root, 1)).returncode == 0
    done = run_command(tmp_path, "logs", "runs/a")
    assert done.returncode == 2
    assert "runs/a was not submitted" in done.stderr
    shown = run_command(tmp_path, "status", "runs/a").stdout
    assert "finished" in shown
