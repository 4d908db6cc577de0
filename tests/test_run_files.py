"""Runs' own files, changed by hands, disks and versions: what is wrong is named, and the other runs are shown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import made_runs
import pytest

from detr_container import cli
from detr_container.compare.analysis import analyse
from detr_container.launch.attempts import JobFolder
from detr_container.run import Run

VALUES: tuple[Any, ...] = (None, "x", -1, 0, 10**30, 1e308, [], [1], {}, {"a": 1}, True, "\0")
FILES = ("config.json", "metrics.jsonl", "evaluations.jsonl", "provenance.jsonl", "job/job.json", "job/history.jsonl")
CONTENTS = (b"", b"[" * 100_000 + b"\n", b"\xff\xfe\x00\n", b"null\n", b"[1]\n", b'{"step": NaN}\n', b'{"a"\n{}\n')


@pytest.fixture
def home(tmp_path: Path) -> Path:
    world = made_runs.make_data(tmp_path / "data", pictures=3)
    for seed, name in enumerate(("good", "bad")):
        run = tmp_path / "runs" / name
        made_runs.make_run(run, made_runs.experiment_of(tmp_path / "data", "smca", "resnet18", seed), world, 0.5)
        made_runs.write_json(
            run / "job" / "job.json",
            {"submission": str(tmp_path / "none"), "where": "local", "index": 0, "job": "1", "host": "elsewhere"},
        )
        line = {"name": "1-0", "hosts": ["a"], "began": 1.0, "ended": 2.0, "outcome": "finished", "why": ""}
        made_runs.write_jsonl(run / "job" / "history.jsonl", [line])
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
    return [result.record for cell in found.cells for result in cell.results]


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
    made_runs.write_jsonl(job.history_path, [{**row, "novel": [1]}])
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
