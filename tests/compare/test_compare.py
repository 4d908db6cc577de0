"""The command `compare`: planned, trained on this machine or as jobs, interrupted, resumed, and reported on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from runs import assert_same_run, environment_of, run_command, start, tiny, wait_for

from detr_container.base.files import read_jsonl
from detr_container.base.processes import environment_of_one
from detr_container.commands.cli import main
from detr_container.compare import running
from detr_container.compare.options import PLAN
from detr_container.compare.trial import training_seconds
from detr_container.config.experiments import named
from detr_container.jobs.status import status_of
from detr_container.jobs.submit import PlannedRun

GRID = ["--base", "debug", "--heads", "smca", "detr", "--backbones", "container_light_tiny", "resnet18"]


def options(root: Path, *settings: str) -> list[str]:
    """Tiny runs on the synthetic images: two epochs of four steps."""
    usual = [f"data.root={root}", "data.make-shapes=16 5 64", "data.workers=0", "device=cpu", "train.log-every=2"]
    return ["--setting", *usual, *settings]


def report_of(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "report" / "report.json").read_text()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted comparison: its home, and the finished command."""
    folder = tmp_path_factory.mktemp("done")
    completed = run_command(folder, "compare", *GRID, "--seeds", "0", "--name", "all", *options(root))
    assert completed.returncode == 0, completed.stderr
    return folder / "runs" / "all", completed


def test_the_plan_comes_first_and_the_page_last(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, completed = done
    lines = completed.stdout.splitlines()
    assert sum(": to train, about " in line for line in lines) == 4
    assert any(line.startswith("SMCA-DETR, resnet18: ") and "FLOPs" in line for line in lines)
    assert any(line.startswith("4 of 4 runs to train: about ") for line in lines)
    assert lines[-1] == (home / "report" / "index.html").resolve().as_uri()
    assert lines[-2].endswith("runs/all/report/index.html")
    for name in ("index.html", "report.md", "report.json", "tables/results.csv", "benchmark.json"):
        assert (home / "report" / name).is_file()


def test_all_arms_are_in_the_report_and_nothing_differs_but_the_backbone(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    report = report_of(done[0])
    rows = next(s["tables"]["results"] for s in report["sections"] if "results" in s["tables"])
    assert {(row["head"], row["backbone"], row["seeds"]) for row in rows} == {
        (head, backbone, "1") for head in ("DETR", "SMCA-DETR") for backbone in ("container_light_tiny", "resnet18")
    }
    # So small a model, trained for eight steps, finds nothing; else there is only what the backbones bring with them.
    stride, *others = report["warnings"]
    assert "32 pixels (SMCA-DETR, resnet18 and DETR, resnet18)" in stride
    assert "16 pixels (SMCA-DETR, container_light_tiny and DETR, container_light_tiny)" in stride
    assert all("none of its detections is right" in warning for warning in others)
    rows = [row for s in report["sections"] for row in s["tables"].get("fair", [])]
    assert [row["setting"] for row in rows if row["verdict"] == "WARNING"] == ["stride"]
    assert any("synthetic images of coloured shapes" in line for line in report["summary"])


def test_latencies_are_measured_for_it(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = report_of(done[0])
    rows = next(s["tables"]["latency"] for s in report["sections"] if "latency" in s["tables"])
    assert len(rows) == 4
    assert all(row["ms"] > row["of it backbone"] > 0 for row in rows)


def test_again_there_is_nothing_left_to_train(done: tuple[Path, subprocess.CompletedProcess[str]], root: Path) -> None:
    home, _ = done
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/checkpoints/*.pt")}
    again = ["compare", *GRID, "--seeds", "0", "--name", "all", "--no-measure", *options(root)]
    completed = run_command(home.parent.parent, *again)
    assert completed.returncode == 0, completed.stderr
    assert "all 4 runs are done or in progress" in completed.stdout
    assert completed.stdout.count(": finished, AP ") == 4
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/checkpoints/*.pt")} == before


@pytest.mark.parametrize("threads", ["", "3"])
def test_time_is_estimated_with_the_threads_that_runs_will_have(
    threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "{\\"name\\": \\"one\\", \\"found\\": $OMP_NUM_THREADS}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    found = training_seconds({"one": named("debug").experiment}, environment_of_one(2))
    assert found == ({"one": int(threads or 4)}, {})


def test_a_dry_run_only_plans(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", *GRID, "--seeds", "0", "--runs", str(tmp_path / "runs"), "--dry-run", *options(root)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(": to train, about ") == 4
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_a_backbone_that_cannot_be_is_named_and_does_not_stop_the_others(root: Path, tmp_path: Path) -> None:
    """One of one size, too small for these images, one with other feature maps than it states, one without a name."""
    bad = ["timm/efficientformer_l1", "timm/pit_ti_224", "timm/no_such_model"]
    arguments = ["compare", "--base", "debug", "--heads", "smca", "--backbones", *bad, "container_light_tiny"]
    arguments += ["--seeds", "0", "--no-measure", *options(root, "data.max_size=320")]
    planned = run_command(tmp_path, *arguments, "--dry-run")
    assert planned.returncode == 1, planned.stderr
    assert planned.stdout.count(": cannot be trained: ") == planned.stdout.count("left out: ") == 3
    assert "--data.resize square --data.scales 224 --data.eval-size 224" in planned.stdout
    assert "container_light_tiny-seed0: to train, about " in planned.stdout
    completed = run_command(tmp_path, *arguments)
    assert completed.returncode == 1, completed.stderr
    home = tmp_path / "runs" / "comparison"
    assert status_of(home / "smca-container_light_tiny-seed0").state == "finished"
    warnings = report_of(home)["warnings"]
    for name in bad:
        assert f"SMCA-DETR, {name} was left out: " in completed.stderr
        assert any(warning.startswith(f"SMCA-DETR, {name} was left out: ") for warning in warnings)
    alone = run_command(tmp_path, *arguments[:5], "--backbones", *bad, *arguments[10:], "--dry-run")
    assert alone.returncode == 2, alone.stdout
    assert "timm/efficientformer_l1 takes images of 224" in alone.stderr


def test_interrupted_it_resumes_where_it_was(
    done: tuple[Path, subprocess.CompletedProcess[str]], root: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a run, then the same command: the runs are those of the uninterrupted comparison."""
    grid = ["--base", "debug", "--heads", "smca", "--backbones", "container_light_tiny", "resnet18"]
    arguments = ["compare", *grid, "--seeds", "0", "--name", "all", "--no-measure", *options(root)]
    process = start(arguments, tmp_path)
    second = tmp_path / "runs" / "all" / "smca-resnet18-seed0" / "metrics.jsonl"
    wait_for(lambda: second.exists() and bool(read_jsonl(second)), process)
    os.kill(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The same command resumes from here" in log
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]
    assert not (tmp_path / "runs" / "all" / "report").exists()
    completed = run_command(tmp_path, *arguments)
    assert completed.returncode == 0, completed.stderr
    assert "smca-container_light_tiny-seed0: finished, AP" in completed.stdout
    for run in sorted((tmp_path / "runs" / "all").glob("*-seed0")):
        assert_same_run(run, done[0] / run.name)


@pytest.mark.long
def test_killed_its_runs_save_and_end(root: Path, tmp_path: Path) -> None:
    arguments = ["compare", *GRID, "--seeds", "0", "--no-measure", "--at-once", "2", *options(root, "train.epochs=90")]
    process = start(arguments, tmp_path)
    runs = [tmp_path / "runs" / "comparison" / f"smca-{name}-seed0" for name in ("container_light_tiny", "resnet18")]
    wait_for(lambda: all(status_of(run).step for run in runs), process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while any(status_of(run).state == "running" for run in runs):
        assert time.monotonic() < end
        time.sleep(0.1)
    for run in runs:
        assert "interrupted (SIGTERM): saved at step" in (run / "log.txt").read_text()


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(root: Path, tmp_path: Path) -> None:
    """A learning rate that diverges for one seed cannot be made to order; a folder that cannot be written can."""
    arguments = ["compare", "--base", "debug", "--heads", "smca", "--backbones", "container_light_tiny"]
    arguments += ["--seeds", "0", "1", "--no-measure", *options(root)]
    broken = tmp_path / "runs" / "comparison" / "smca-container_light_tiny-seed0"
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("in the way")
    completed = run_command(tmp_path, *arguments)
    assert completed.returncode == 1, completed.stdout
    assert f"{broken.relative_to(tmp_path)} failed: " in completed.stderr
    report = report_of(broken.parent)
    assert any(str(broken.relative_to(tmp_path)) in warning for warning in report["warnings"])
    rows = next(s["tables"]["results"] for s in report["sections"] if "results" in s["tables"])
    assert rows[0]["seeds"] == "1 of 2"


def test_as_jobs_the_last_run_writes_the_report(root: Path, tmp_path: Path) -> None:
    arguments = ["compare", "--base", "debug", "--heads", "smca", "--backbones", "container_light_tiny", "resnet18"]
    arguments += ["--seeds", "0", "--submit", "--cluster", "local", "--slurm.gpus-per-node", "0", *options(root)]
    completed = run_command(tmp_path, *arguments)
    assert completed.returncode == 0, completed.stderr
    assert "submitted 2 of 2 runs: job " in completed.stdout
    home, end = tmp_path / "runs" / "comparison", time.monotonic() + 180
    while not (home / "report" / "index.html").exists():
        assert time.monotonic() < end, run_command(tmp_path, "status", str(home)).stdout
        time.sleep(0.5)
    rows = next(s["tables"]["results"] for s in report_of(home)["sections"] if "results" in s["tables"])
    assert [row["seeds"] for row in rows] == ["1", "1"]
    assert json.loads((home / PLAN).read_text())["members"] == [
        "smca-container_light_tiny-seed0",
        "smca-resnet18-seed0",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "resnet19"], "there is no backbone 'resnet19'"),
        (["--base", "debgu"], "there is no experiment 'debgu': did you mean debug"),
        (["--setting", "train.batch=5", "train.micro-batch=2"], "train.batch=5 is not divisible by"),
    ],
)
def test_what_is_refused_before_anything_is_trained(
    arguments: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["compare", "--base", "debug", "--heads", "smca", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    usual += ["--backbones", "resnet18"] if "--backbones" not in arguments else []
    given = [*usual, *arguments] if "--setting" in arguments else [*usual, *arguments, *options(root)]
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_report_prints_where_it_is(
    done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done[0], tmp_path / "copy")
    output = tmp_path / "page"
    assert main(["report", str(tmp_path / "copy"), "--output", str(output), "--resamples", "10"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{output}/index.html", f"{output.as_uri()}/index.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name runs, folders of runs, or patterns"),
        (["nowhere"], "nowhere is neither a folder nor a pattern that fits any"),
        (["--resamples", "1", "."], "resamples=1, epoch=0: give at least 2"),
    ],
)
def test_reports_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_train_together_have_their_own_gpus(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process's environment as the system shows it; a run that will not use a GPU takes none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x")
    settings = tiny(root)
    found = []
    with contextlib.ExitStack() as held:
        for number, device in enumerate(("auto", "cpu", "auto", "auto")):
            run = PlannedRun(tmp_path / str(number), replace(settings, device=device))
            extra = running._gpu_of(run, held, Console(quiet=True))
            process = running._start(run, 2, extra)
            found.append((environment_of(process.pid)["CUDA_VISIBLE_DEVICES"], dict(extra)))
            process.kill()
            process.wait()
    alone = {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "GPU-x"}
    assert [extra for _, extra in found] == [alone[0], {}, alone[1], alone[0]]
    assert [seen for seen, _ in found] == ["3", "3,GPU-x", "GPU-x", "3"]
