"""Runs' own files, changed by hands, disks and versions: what is wrong is named, and the other runs are shown."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs

from detr_container.base.checked import read_json
from detr_container.base.lock import NAME, FolderLock, holder
from detr_container.commands import cli
from detr_container.compare.analysis import analyse
from detr_container.compare.options import PLAN
from detr_container.compare.report import folders_of, plan_of
from detr_container.engine import provenance
from detr_container.engine.resume import data_changes
from detr_container.engine.run import Run
from detr_container.engine.run_files import BenchmarkFile
from detr_container.engine.same import run_differences
from detr_container.launch.attempts import JobFolder
from detr_container.launch.resources import Resources
from detr_container.launch.snapshot import NOTE, read_note
from detr_container.launch.submission import Submission

VALUES: tuple[Any, ...] = (None, "x", -1, 0, 10**30, 1e308, [], [1], {}, {"a": 1}, True, "\0")
FILES = ("config.json", "metrics.jsonl", "evaluations.jsonl", "provenance.jsonl", "job/job.json", "job/history.jsonl")
CONTENTS = (b"", b"[" * 100_000 + b"\n", b"\xff\xfe\x00\n", b"null\n", b"[1]\n", b'{"step": NaN}\n', b'{"a"\n{}\n')


@pytest.fixture
def home(tmp_path: Path) -> Path:
    world = synthetic_runs.make_data(tmp_path / "data", count=3)
    for seed, name in enumerate(("good", "bad")):
        run = tmp_path / "runs" / name
        experiment = synthetic_runs.experiment_of(tmp_path / "data", "smca", "resnet18", seed)
        synthetic_runs.make_run(run, experiment, world, 0.5, old=True)
        place = run / "job" / "submissions" / "001"
        (place / "jobs").mkdir(parents=True)
        (place / "jobs" / "1_0_log.out").write_text("step 1\n")
        Submission(place, "local", [str(run)], Resources(), "", str(run), str(run), jobs=["1"]).write()
        synthetic_runs.write_json(
            run / "job" / "job.json",
            {"submission": str(place), "where": "local", "index": 0, "job": "1", "host": "elsewhere"},
        )
        line = {"name": "1-0", "hosts": ["a"], "began": 1.0, "ended": 2.0, "outcome": "finished", "why": ""}
        synthetic_runs.write_jsonl(run / "job" / "history.jsonl", [line])
    return tmp_path


def changed(path: Path) -> list[bytes]:
    """The file with each key of its first object removed, or given each of some values."""
    first, _, rest = path.read_text().partition("\n") if path.suffix == ".jsonl" else (path.read_text(), "", "")
    record, found = json.loads(first), list(CONTENTS)
    for key in record:
        without = {name: value for name, value in record.items() if name != key}
        found += [f"{json.dumps({**without, **one})}\n{rest}".encode() for one in ({}, *({key: v} for v in VALUES))]
    return found


@pytest.mark.parametrize("name", FILES)
def test_status_and_report_show_the_other_runs_whatever_a_file_holds(
    name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "runs" / "bad" / name
    whole, named = path.read_bytes(), 0
    for content in changed(path):
        path.write_bytes(content)
        status = cli.main(["status", str(home / "runs")])
        out, err = capsys.readouterr()
        assert status in (0, 1), (content[:200], err)
        assert f"{home}/runs/good" in out
        assert (status == 1) == (str(path) in out)
        named += status
    for content in (*CONTENTS, whole.replace(b'"', b"'", 1)):
        path.write_bytes(content)
        assert any(run.name == "good" for run in (one.folder for one in analyse_all(home)))
    assert named or name == "provenance.jsonl"
    path.write_bytes(whole)
    capsys.readouterr()
    assert cli.main(["status", str(home / "runs")]) == 0


def analyse_all(home: Path) -> list[Any]:
    """The runs that a report counts."""
    found = analyse([home / "runs" / "good", home / "runs" / "bad"], count=3)
    return [result.record for arm in found.arms for result in arm.results]


def test_what_is_wrong_is_named_by_file_line_key_and_value(home: Path) -> None:
    run = Run(home / "runs" / "bad")
    lines = run.metrics_path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "step": "7"})
    run.metrics_path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: step='7': input should be a valid integer.*Delete"):
        run.metrics()
    faults: list[str] = []
    assert len(run.metrics(faults)) == len(lines) - 1
    assert len(faults) == 1
    with pytest.raises(ValueError, match=r"line 2: step='7'"):
        run.rewind(3)
    assert len(run.metrics_path.read_text().splitlines()) == len(lines)


def test_a_newer_versions_keys_are_no_fault(home: Path) -> None:
    job = JobFolder(home / "runs" / "bad")
    row = json.loads(job.history_path.read_text())
    synthetic_runs.write_jsonl(job.history_path, [{**row, "novel": [1]}])
    faults: list[str] = []
    assert [attempt.outcome for attempt in job.history(faults)] == ["finished"]
    assert not faults


def test_a_folder_or_a_pipe_in_place_of_a_file_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        path = home / "runs" / "bad" / name
        kept = path.rename(path.with_name("kept"))
        path.mkdir()
        assert cli.main(["status", str(home / "runs")]) in (0, 1)
        path.rmdir()
        os.mkfifo(path)
        assert cli.main(["status", str(home / "runs")]) in (0, 1)
        path.unlink()
        kept.rename(path)
        assert "runs/good" in capsys.readouterr().out
    shutil.rmtree(home / "runs" / "bad")


LAST = f"detections/epoch-{synthetic_runs.EPOCHS:03d}"
SUBMISSION = "job/submissions/001/submission.json"
MORE = (SUBMISSION, f"{LAST}/scores.json", f"{LAST}/detections.json", NAME)


def mutants(path: Path, rng: random.Random, count: int) -> list[bytes]:
    """Some changes of a file: of one of its values, however deep, or of its bytes."""
    whole, found = path.read_bytes(), []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.2:
            found.append(rng.choice(CONTENTS))
        elif draw < 0.4:
            at = rng.randrange(len(whole))
            found.append(whole[:at] + bytes([rng.randrange(256)]) + whole[at + rng.randrange(3) :])
        else:
            value = [json.loads(line) for line in whole.splitlines()] if path.suffix == ".jsonl" else json.loads(whole)
            node = value
            while isinstance(node, dict | list) and node:
                key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
                if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.4:
                    node[key] = rng.choice(VALUES)
                    break
                node = node[key]
            lines = value if path.suffix == ".jsonl" else [value]
            found.append("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    return found


@pytest.mark.long
def test_no_command_ends_in_a_traceback_whatever_a_runs_files_hold(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors that are not for a person pass through `cli.main`, so that they end this test."""
    (home / "empty").mkdir()
    monkeypatch.setenv("PATH", str(home / "empty"))
    run, rng = home / "runs" / "bad", random.Random(13)
    synthetic_runs.write_json(run / NAME, {"host": "elsewhere", "pid": 1, "process": "x", "job": "7", "since": 0})
    image = str(next((home / "data" / "val2017").iterdir()))
    commands = (
        ("status", str(home / "runs")),
        ("logs", str(run)),
        ("cancel", str(run)),
        ("resubmit", str(run), "--cluster", "slurm"),
        ("predict", str(run), image, "--output", str(home / "predictions")),
        ("evaluate", str(run)),
    )
    for name in (*FILES, *MORE):
        path = run / name
        whole = path.read_bytes()
        for content in mutants(path, rng, 6):
            path.write_bytes(content)
            for line in commands:
                status = cli.main(list(line))
                err = capsys.readouterr().err
                errors = [row for row in err.splitlines() if row.startswith("error: ")]
                assert len(errors) == (status == 2), (name, content[:200], line, err)
                assert status in ((0, 1, 2) if line[0] in ("status", "logs", "cancel") else (2,))
            assert any(one.folder.name == "good" for one in analyse_all(home))
            with contextlib.suppress(ValueError, OSError):
                Run(run).rewind(10)
        path.write_bytes(whole)
        for log in ("metrics.jsonl", "evaluations.jsonl"):
            shutil.copy(home / "runs" / "good" / log, run / log)
    assert [path.name for path in (run / "job" / "submissions").iterdir()] == ["001"]
    assert not (run / "job" / "cancelled").exists()


@pytest.mark.parametrize("name", ["job/job.json", SUBMISSION])
@pytest.mark.parametrize("content", ['{"job": [1]}', "[]", ""])
def test_what_cannot_be_read_of_a_job_is_refused_by_name(
    name: str, content: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than resubmitted with the usual resources, or called a run that was never submitted."""
    run = home / "runs" / "bad"
    path = run / name
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **json.loads(content)}) if content.startswith("{") else content)
    commands = [["resubmit", str(run)], ["logs", str(run)]]
    if name == "job/job.json":
        commands.append(["cancel", str(home / "runs")])
        assert cli.main(["status", str(run)]) == 1
        # Its training is complete; that is known from other files.
        assert "finished" in capsys.readouterr().out
    elif content.startswith("{"):
        # No such key is read there.
        return
    for line in commands:
        assert cli.main(line) == 2
        out, err = capsys.readouterr()
        assert str(path) in err
        assert line[0] != "cancel" or f"{home}/runs/good: nothing to cancel" in out


@pytest.mark.parametrize("name", ["job/job.json", "config.json"])
def test_a_damaged_run_is_left_out_and_the_others_continue(
    name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["data.make_shapes=4 4 64", "data.workers=0", "device=cpu", f"data.root={home}/shapes", "train.epochs=9"]
    sweep = ["sweep", "s", "--experiments", "debug", "--seeds", "0", "1", "--cluster", "local", "--set", *usual]
    compare = ["compare", "--name", "s", "--heads", "smca", "--base", "debug", "--seeds", "0", "1"]
    compare += ["--backbones", "container_light_tiny", "--setting", *usual]
    for line, pattern in ((sweep, "debug-seed{}"), (compare, "smca-container_light_tiny-seed{}")):
        runs = home / line[0]
        bad, good = (runs / "s" / pattern.format(seed) for seed in range(2))
        (bad / name).parent.mkdir(parents=True, exist_ok=True)
        (bad / name).write_text('{"job": [1]}')
        assert cli.main([*line, "--runs", str(runs), "--dry-run"]) == 1
        out, err = capsys.readouterr()
        (message,) = (row for row in out.splitlines() if row.startswith(f"{bad}: "))
        assert str(bad / name) in message, message
        assert any(row.startswith(f"{good}: ") and "to " in row for row in out.splitlines()), out + err
        # With nothing else to do, that is printed, too.
        (good / name).parent.mkdir(parents=True, exist_ok=True)
        (good / name).write_text("[")
        assert cli.main([*line, "--runs", str(runs)]) == (1 if line[0] == "sweep" else 2)
        out, err = capsys.readouterr()
        assert all(str(run / name) in (out + err) for run in (bad, good))


def test_a_plan_that_is_damaged(
    home: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare`, which would write over it, refuses; a report finds the runs that are there without it."""
    plan = home / "runs" / PLAN
    for content in ("[1]", '{"members": 3}', '{"refused": ["x"]}', ""):
        plan.write_text(content)
        with pytest.raises(ValueError, match=str(plan)):
            plan_of(home / "runs")
        caplog.clear()
        assert {path.name for path in folders_of([str(home / "runs")])} == {"good", "bad"}
        assert str(plan) in caplog.text
    line = ["compare", "--runs", str(home), "--name", "runs", "--backbones", "resnet18", "--base", "debug"]
    assert cli.main([*line, "--dry-run"]) == 2
    assert str(plan) in capsys.readouterr().err


def test_damaged_notes_are_named(home: Path) -> None:
    for path, read in (
        (home / NOTE, lambda: read_note(home)),
        (home / "benchmark.json", lambda: read_json(home / "benchmark.json", BenchmarkFile)),
        (home / "submission.json", lambda: Submission.read(home)),
    ):
        for content in ("[1]", '{"experiments": {"a": {"figures": {"b": {"value": "1"}}}}}', "{", "null"):
            path.write_text(content)
            with pytest.raises(ValueError, match=str(path)):
                read()


def test_a_damaged_note_of_the_code_is_reported_in_a_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To whoever resubmits from within a copy of the code."""
    run = home / "runs" / "bad"
    monkeypatch.setattr(provenance, "__file__", str(home / "detr_container" / "engine" / "provenance.py"))
    for content in ("[1]", '{"package": 3, "sha256": ""}', "{", "null"):
        (home / NOTE).write_text(content)
        line = ["resubmit", str(run), "--update-code", "--cluster", "local", "--train.epochs", "50"]
        assert cli.main([*line, "--data.make-shapes", "2", "2", "64"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {home / NOTE}"), err
        assert err.count("\n") == 1
        assert [path.name for path in (run / "job" / "submissions").iterdir()] == ["001"]


def test_runs_whose_files_cannot_be_read_are_not_compared(home: Path) -> None:
    good, bad = home / "runs" / "good", home / "runs" / "bad"
    with pytest.raises(ValueError, match=r"runs/good has no checkpoint, so there is nothing to compare"):
        run_differences(good, bad)
    for run in (good, bad):
        Run(run).checkpoints().save({"step": 1, "experiment": {}}, 1)
    assert run_differences(good, bad) == []
    for name in ("metrics.jsonl", "evaluations.jsonl", LAST + "/detections.json"):
        whole = (bad / name).read_bytes()
        for content in (b"[" * 100_000 + b"\n", b'{"step": "x"}\n{}\n', b"nonsense\n{}\n"):
            (bad / name).write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(str(bad / name))):
                run_differences(good, bad)
        (bad / name).write_bytes(whole)
    (bad / LAST / "detections.json").write_text("{}")
    assert run_differences(good, bad)[0].startswith(f"{LAST}/detections.json: ")


def test_a_lock_whose_holder_cannot_be_read_is_held_all_the_same(home: Path) -> None:
    run = home / "runs" / "bad"
    for content in ("", "[]", '{"pid": "x"}', '{"host": "a", "pid": 1, "process": "", "job": "", "since": 1e300}'):
        (run / NAME).write_text(content)
        with FolderLock(run):
            (run / NAME).write_text(content)
            assert holder(run) == {}
        assert not (run / NAME).exists()


def test_a_detection_that_is_none_is_named(home: Path) -> None:
    path = home / "runs" / "bad" / LAST / "detections.json"
    rows = synthetic_runs.read_json(path)
    for key, value in (("score", "0.5"), ("bbox", ["1", "2", "3", "4"]), ("score", True), ("image_id", 1.0)):
        bad = [{**row, key: value} if index >= 2 else row for index, row in enumerate(rows)]
        path.write_text(json.dumps(bad if key != "score" or value is not True else [{**r, key: True} for r in rows]))
        found = analyse([home / "runs" / "good", home / "runs" / "bad"], count=3)
        (why,) = found.left_out.values()
        assert f"{key}" in why
        assert "record 0" in why if value is True else "record 2" in why


def test_a_resume_reports_when_it_does_not_know_which_data_there_was(home: Path) -> None:
    """Of a checkpoint that does not hold the annotation files' hashes itself."""
    path = home / "runs" / "bad" / "provenance.jsonl"
    line = json.loads(path.read_text())
    now = {split: {**entry, "sha256": 64 * "0"} for split, entry in line["data"].items()}
    assert len(data_changes({}, path.parent, now)) == 2
    synthetic_runs.write_jsonl(path, [line, {**line, "data": {"train": {"sha256": 3}}}])
    messages = data_changes({}, path.parent, now)
    assert len(messages) == 3
    assert f"{path}, line 2: data.train.sha256=3" in messages[0]
    assert data_changes({"data": {"val": 64 * "0"}}, path.parent, now) == []
