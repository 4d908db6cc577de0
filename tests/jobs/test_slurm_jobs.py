"""Runs as jobs of a real Slurm, interrupted in the ways that a cluster knows, against an uninterrupted one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interruptions import INTERRUPTIONS, preempt
from runs import REPOSITORY, assert_same_run, environment, run_command, settings_of, tiny
from slurm_cluster import Cluster, cluster, missing

from detr_container.base.files import read_jsonl
from detr_container.engine.same import metrics
from detr_container.jobs.status import RunStatus, status_of
from detr_container.launch.attempts import JobFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
EPOCHS = 40
TWO_NODES = ["--slurm.nodes", "2", "--slurm.gpus-per-node", "1", "--slurm.time", "10m"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster of two nodes, reachable from this process and those it starts."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with cluster(folder) as running, pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def experiment_options(root: Path, epochs: int) -> list[str]:
    """The debug experiment, made smaller, with what could carry a state from one step to the next."""
    settings = {"train__micro_batch": 1, "train__ema_decay": 0.9, "head__dropout": 0.1}
    return settings_of(tiny(root, train__epochs=epochs, train__eval_every=epochs // 2, **settings))


def submit(folder: Path, root: Path, name: str, *options: str, epochs: int = EPOCHS) -> str:
    """Submit the debug experiment, made smaller, on two nodes; returns the job's name."""
    line = ["submit", "debug", "--run", name, *TWO_NODES, *experiment_options(root, epochs), *options]
    done = run_command(folder, *line)
    assert done.returncode == 0, done.stderr
    facts = JobFolder(folder / "runs" / name).submission()
    assert facts is not None
    assert f"submitted job {facts['job']}" in done.stdout
    return str(facts["job"])


def wait_until(condition: Callable[[], bool], what: str, slurm: Cluster, seconds: float = 300) -> None:
    """Wait; fails with Slurm's logs after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not {what} after {seconds} s\n{slurm.log()}"
        time.sleep(0.1)


def rows(run: Path) -> int:
    """Lines of metrics so far."""
    with contextlib.suppress(FileNotFoundError):
        return len(read_jsonl(run / "metrics.jsonl"))
    return 0


def end_of(run: Path, slurm: Cluster, seconds: float = 180) -> RunStatus:
    """The status of a run once it neither runs nor waits."""
    wait_until(lambda: status_of(run).state in ("finished", "failed", "cancelled", "stopped"), "over", slurm, seconds)
    return status_of(run)


@pytest.fixture(scope="module")
def place(slurm: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all runs are, with one, `uninterrupted`, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("jobs")
    submit(folder, root, "uninterrupted")
    now = end_of(folder / "runs" / "uninterrupted", slurm)
    assert now.state == "finished", log_of(folder / "runs" / "uninterrupted")
    assert not now.restarts
    return folder


def log_of(run: Path) -> str:
    """All that a run's processes wrote."""
    return "\n".join(path.read_text() for path in sorted(run.glob("job/submissions/*/jobs/*_log.out")))


def test_a_run_on_two_nodes(slurm: Cluster, place: Path) -> None:
    run = place / "runs" / "uninterrupted"
    (attempt,) = JobFolder(run).history()
    assert (attempt.hosts, attempt.outcome) == (["node1", "node2"], "finished")
    assert read_jsonl(run / "provenance.jsonl")[0]["world_size"] == 2
    assert [row["step"] for row in metrics(run)] == list(range(2, 4 * EPOCHS + 1, 2))
    shown = run_command(place, "status", "runs/uninterrupted").stdout
    assert "finished" in shown
    assert f"{4 * EPOCHS}/{4 * EPOCHS}" in shown
    assert "step 2/" in run_command(place, "logs", "runs/uninterrupted").stdout
    assert "submitit INFO" in run_command(place, "logs", "runs/uninterrupted", "--rank", "1").stdout


@pytest.mark.parametrize(
    ("interrupt", "outcome", "reason"),
    [
        # The others are tried with work that counts (tests/launch/test_slurm.py), and here in the long tests.
        pytest.param(*each, marks=[] if each[0] is preempt else [pytest.mark.long])
        for each in INTERRUPTIONS
    ],
)
def test_an_interrupted_run_equals_the_uninterrupted_one(
    interrupt: Callable[[Cluster, str, Path], None],
    outcome: str,
    reason: str,
    slurm: Cluster,
    place: Path,
    root: Path,
) -> None:
    run = place / "runs" / interrupt.__name__
    job = submit(place, root, run.name)
    wait_until(lambda: rows(run) >= 8, "8 lines of metrics", slurm)
    interrupt(slurm, job, run)
    now = end_of(run, slurm)
    history = JobFolder(run).history()
    assert now.state == "finished", f"{history}\n{log_of(run)}"
    assert (history[0].outcome, history[0].why) == (outcome, reason), history
    assert len(history) == 2
    assert sum(now.restarts.values()) == 1
    # It resumed from what was there.
    assert f"resuming from {run}/checkpoints" in log_of(run)
    assert_same_run(run, place / "runs" / "uninterrupted")


@pytest.mark.long
def test_a_time_limit(slurm: Cluster, place: Path, root: Path) -> None:
    """Slurm counts in minutes and may send the signal a minute early."""
    run = place / "runs" / "limit"
    submit(place, root, run.name, "--slurm.time", "1m", "--slurm.lead", "20", epochs=120)
    now = end_of(run, slurm, 600)
    assert now.state == "finished", log_of(run)
    assert set(now.restarts) == {"time limit"}
    submit(place, root, "unlimited", epochs=120)
    end_of(run.with_name("unlimited"), slurm, 300)
    assert_same_run(run, run.with_name("unlimited"))


@pytest.mark.long
def test_an_array_with_a_run_that_fails(slurm: Cluster, place: Path, root: Path) -> None:
    """The others finish; the same command, after the fix, submits the failed one alone."""
    bad = place / "bad"
    shutil.copytree(root, bad)
    image = sorted((bad / "train2017").iterdir())[3]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    grid = ["sweep", "grid", "--experiments", "debug", "--seeds", "0", "1", "--grid", f"data.root={root},{bad}"]
    common = ["data.make-shapes=0 0 0", "data.workers=0", "data.eval-batch=2", "train.epochs=2", "device=cpu"]
    line = [*grid, "--set", *common, "--slurm.gpus-per-node", "0", "--slurm.time", "10m", "--at-once", "2"]
    first = run_command(place, *line)
    assert first.returncode == 0, first.stderr
    assert "submitted 4 of 4 runs" in first.stdout
    runs = sorted(path for path in (place / "runs" / "grid").iterdir() if path.name != "submissions")
    states = {run.name: end_of(run, slurm).state for run in runs}
    assert {state for name, state in states.items() if "_bad" in name} == {"failed"}
    assert {state for name, state in states.items() if "_bad" not in name} == {"finished"}
    shown = run_command(place, "status", "runs/grid").stdout
    assert str(image) in shown
    image.write_bytes(content)
    again = run_command(place, *line)
    assert "submitted 2 of 4 runs" in again.stdout, again.stderr
    for run in runs:
        assert end_of(run, slurm).state == "finished", log_of(run)
    assert "nothing to submit" in run_command(place, *line).stdout
    good, fixed = ([run for run in runs if ("_bad" in run.name) == is_bad] for is_bad in (False, True))
    for a, b in zip(good, fixed, strict=True):
        assert_same_run(a, b)


@pytest.mark.long
def test_a_comparison_as_an_array_ends_with_its_report(slurm: Cluster, place: Path, root: Path) -> None:
    """One run is preempted; whichever finishes last writes the report."""
    grid = ["--base", "debug", "--heads", "smca", "--backbones", "container_light_tiny", "resnet18", "--seeds", "0"]
    common = [f"data.root={root}", "data.make-shapes=0 0 0", "data.workers=0", "train.epochs=20", "train.eval-every=20"]
    resources = ["--slurm.gpus-per-node", "0", "--slurm.time", "10m", "--at-once", "2"]
    line = ["compare", "--name", "pair", "--submit", *grid, *resources, "--setting", *common, "device=cpu"]
    done = run_command(place, *line)
    assert done.returncode == 0, done.stderr
    assert "submitted 2 of 2 runs" in done.stdout
    home = place / "runs" / "pair"
    interrupted, other = (home / f"smca-{name}-seed0" for name in ("resnet18", "container_light_tiny"))
    wait_until(lambda: rows(interrupted) >= 2, "running", slurm)
    subprocess.run(["scancel", "--signal=USR2", status_of(interrupted).job], check=True)
    for run in (interrupted, other):
        assert end_of(run, slurm).state == "finished", log_of(run)
    wait_until((home / "report" / "index.html").exists, "reported", slurm)
    assert JobFolder(interrupted).history()[0].outcome == "stopped"
    assert "all 2 runs are done" in run_command(place, *line).stdout


@pytest.mark.long
def test_killed_batch_scripts_of_an_array(slurm: Cluster, place: Path, root: Path) -> None:
    """Of one run twice, the second time before anything was saved; the other is not touched by it."""
    common = ["data.make-shapes=0 0 0", "data.workers=0", "data.eval-batch=2", "train.epochs=20", "device=cpu"]
    line = ["sweep", "killed", "--experiments", "debug", "--seeds", "0", "1", "--set", f"data.root={root}", *common]
    done = run_command(place, *line, "--slurm.gpus-per-node", "0", "--slurm.time", "10m")
    assert done.returncode == 0, done.stderr
    runs = [place / "runs" / "killed" / f"debug-seed{seed}" for seed in (0, 1)]
    facts = JobFolder(runs[1]).submission()
    assert facts is not None
    for restarts in ("0", "1"):
        wait_until(
            lambda: (slurm.job(facts["job"])["JobState"], slurm.job(facts["job"])["Restarts"]) == ("RUNNING", restarts),  # noqa: B023
            "running",
            slurm,
        )
        slurm.run("scancel", "--batch", "--signal=KILL", facts["job"])
    for run in runs:
        assert end_of(run, slurm).state == "finished", log_of(run)
    assert [attempt.why for attempt in JobFolder(runs[0]).history()] == [""]
    assert [attempt.why for attempt in JobFolder(runs[1]).history()] == ["batch script killed"] * 2 + [""]
    # No watcher is left, of these jobs or of others that have ended.
    wait_until(lambda: "watch-" not in slurm.run("squeue", "--noheader", "--format=%j"), "without watchers", slurm)


@pytest.mark.long
def test_a_cancelled_run_stays_so_though_its_batch_script_was_killed(slurm: Cluster, place: Path, root: Path) -> None:
    run = place / "runs" / "cancelled-killed"
    job = submit(place, root, run.name, epochs=400)
    wait_until(lambda: rows(run) >= 2, "running", slurm)
    JobFolder(run).cancelled_path.touch()
    slurm.run("scancel", "--batch", "--signal=KILL", job)
    slurm.wait(job, "FAILED", 60)
    facts = JobFolder(run).submission()
    assert facts is not None
    slurm.wait(facts["watch"], "COMPLETED", 60)
    assert slurm.job(job)["Restarts"] == "0"
    assert status_of(run).state == "cancelled"


@pytest.mark.long
def test_cancel_and_resubmit_for_longer(slurm: Cluster, place: Path, root: Path) -> None:
    run = place / "runs" / "cancelled"
    submit(place, root, run.name, epochs=400)
    wait_until(lambda: rows(run) >= 4, "running", slurm)
    second = run_command(place, "submit", "debug", "--run", run.name, *TWO_NODES)
    assert second.returncode == 2
    assert run_command(place, "cancel", "runs/cancelled").returncode == 0
    now = end_of(run, slurm)
    assert now.state == "cancelled", JobFolder(run).history()
    time.sleep(3)
    assert status_of(run).state == "cancelled"
    done = run_command(
        place, "resubmit", "runs/cancelled", "--train.epochs", str(now.step // 4 + 6), "--slurm.nodes", "1"
    )
    assert done.returncode == 0, done.stderr
    assert end_of(run, slurm).state == "finished", log_of(run)
    assert [a.hosts for a in JobFolder(run).history() if a.hosts] == [["node1", "node2"], ["node1"]]


@pytest.mark.long
def test_scancel_by_hand_is_an_end(slurm: Cluster, place: Path, root: Path) -> None:
    """Slurm would requeue a cancelled job if it were asked to."""
    run = place / "runs" / "scancel"
    job = submit(place, root, run.name, epochs=400)
    wait_until(lambda: rows(run) >= 4, "running", slurm)
    slurm.run("scancel", job)
    assert slurm.wait(job, "CANCELLED", 60)["Restarts"] == "0"
    assert end_of(run, slurm).state == "cancelled"
    (attempt,) = JobFolder(run).history()
    assert (attempt.outcome, attempt.why, attempt.action) == ("stopped", "cancelled", "cancelled")
    assert attempt.evidence_after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slurm.partition", "lwo"], r"slurm\.partition=lwo: this cluster has low, low0, high"),
        (["--slurm.nodes", "3"], r"slurm\.nodes=3: partition low has 2"),
        (["--slurm.gpus-per-node", "4"], r"slurm\.gpus-per-node=4: partition low has at most 2 GPU\(s\) on a node"),
        (["--slurm.time", "2d"], r"slurm\.time=2d: partition low allows 1440 minutes"),
        (["--slurm.mem", "900G"], r"Slurm refused the job: sbatch: error: .*"),
        (["--slurm.shared", "/nowhere"], r"is not in a folder that the nodes see"),
    ],
)
def test_what_cannot_be_had_is_refused_at_once(
    options: list[str], message: str, slurm: Cluster, tmp_path: Path, root: Path
) -> None:
    done = run_command(tmp_path, "submit", "debug", *TWO_NODES, *settings_of(tiny(root)), *options)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "runs" / "debug").exists()
    assert "debug" not in slurm.run("squeue", "--noheader", "--format=%j")


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_the_plain_batch_script(launcher: str, slurm: Cluster, place: Path, root: Path) -> None:
    """Without submitit: preempted, requeued by itself, and equal."""
    run = place / "runs" / f"plain-{launcher}"
    options = ["--nodes=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10"]
    options += ["--output", str(place / f"{launcher}.log"), "--export=ALL"]
    line = ["sbatch", "--parsable", *options, str(REPOSITORY / "launch" / "example.sbatch")]
    done = subprocess.run(
        [*line, "debug", "--run", run.name, *experiment_options(root, EPOCHS)],
        cwd=place,
        env=environment(LAUNCHER=launcher, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    wait_until(lambda: rows(run) >= 8, "8 lines of metrics", slurm)
    preempt(slurm, job, run)
    slurm.wait(job, "COMPLETED", 300)
    assert slurm.job(job)["Restarts"] == "1"
    assert_same_run(run, place / "runs" / "uninterrupted")
