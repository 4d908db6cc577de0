"""Runs as they are found: whatever is wrong with one is named in the report, and nothing is dropped silently."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import (
    EPOCHS,
    comparison,
    experiment_of,
    make_data,
    make_run,
    provenance_line,
    read_json,
    records,
    rewrite,
)

from detr_container.base.files import read_jsonl, write_json, write_jsonl
from detr_container.compare import ranking, results
from detr_container.compare.analysis import Analysis, analyse
from detr_container.compare.arms import arms_of
from detr_container.compare.options import PLAN, ReportOptions
from detr_container.compare.reading import read_runs
from detr_container.compare.report import folders_of, write_report
from detr_container.config.settings import to_dict
from detr_container.tasks.detection.detections import NAME

SEEDS = 2
LAST = f"detections/epoch-{EPOCHS:03d}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    comparison(home, SEEDS)
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    """A copy to break; the data stay where they are."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    return tmp_path


def analysed(home: Path, epoch: int | None = None) -> Analysis:
    return analyse(folders_of([str(home / "runs")]), epoch=epoch, count=10)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda run: (run / "config.json").unlink(), r"its settings cannot be read"),
    "half of the settings": (lambda run: cut_short(run / "config.json"), r"its settings cannot be read"),
    "settings of another version": (lambda run: change(run / "config.json", novel=1), r"its settings cannot be read"),
    "no evaluations": (lambda run: (run / "evaluations.jsonl").unlink(), r"evaluations\.jsonl is missing"),
    "no detections": (lambda run: (run / LAST / NAME).unlink(), r"detections\.npz is missing"),
    "half of the detections": (
        lambda run: cut_short(run / LAST / NAME),
        r"detections\.npz is no whole file of detections \(File is not a zip file\)",
    ),
    "half of an earlier version's detections": (
        lambda run: cut_short(rewrite(run, json.dumps(records(run)))),
        r"is not valid JSON .* cut short",
    ),
    "detections that are none": (lambda run: rewrite(run, "{}"), r"holds a dict"),
    "a record without a box": (
        lambda run: rewrite(run, '[{"image_id": 3, "category_id": 2, "score": 1}]'),
        r"not in COCO's result format",
    ),
    "a detection that is not finite": (
        lambda run: rewrite(run, '[{"image_id": 3, "category_id": 2, "score": NaN, "bbox": [0, 0, 1, 1]}]'),
        r"1 detections are not finite",
    ),
    "an image of other data": (
        lambda run: rewrite(run, '[{"image_id": 4, "category_id": 2, "score": 1, "bbox": [0, 0, 1, 1]}]'),
        r"detections on images that .* lacks: image_id 4",
    ),
    "no scores of the evaluation": (lambda run: (run / LAST / "scores.json").unlink(), r"scores\.json cannot be read"),
    "in progress or crashed": (
        lambda run: write_jsonl(run / "evaluations.jsonl", read_jsonl(run / "evaluations.jsonl")[:1]),
        rf"stopped: last evaluated after epoch 1 of {EPOCHS}",
    ),
    "not evaluated yet": (lambda run: write_jsonl(run / "evaluations.jsonl", []), r"stopped: not evaluated yet"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_run_that_cannot_be_used_is_named_and_in_no_mean(what: str, home: Path) -> None:
    damage, message = BROKEN[what]
    run = home / "runs" / "smca-resnet18-seed1"
    damage(run)
    found = analysed(home)
    assert list(found.left_out) == [run]
    assert any(str(run) in warning for warning in ranking.warnings(found))
    rows = {row["run"]: row for row in ranking.runs(found, "AP").tables[0].as_data()}
    assert re.search(message, rows[str(run)]["remarks"])
    row_of = {(row["head"], row["backbone"]): row for row in results.headline(found, {}).tables[0].as_data()}
    row = row_of["SMCA-DETR", "resnet18"]
    assert row["seeds"] == ("1" if "settings" in what else "1 of 2")
    assert row["AP sd"] is None
    other = next(arm.results for arm in found.arms if arm.label == "SMCA-DETR, resnet18")
    assert row["AP"] == pytest.approx(100 * other[0].plain[0])


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a loss that was not a number": (
        lambda run: write_jsonl(
            run / "metrics.jsonl", [{**row, "loss": None} for row in read_jsonl(run / "metrics.jsonl")]
        ),
        "its loss was not a number at some step",
    ),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "metrics with a broken line": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n'),
        "line 2: not a JSON object",
    ),
    "no provenance": (lambda run: (run / "provenance.jsonl").unlink(), "provenance.jsonl is missing"),
    "nothing was detected": (
        lambda run: rewrite(run, "[]"),
        "it has detected nothing at all",
    ),
    "classes that the data lack": (
        lambda run: rewrite(
            run,
            json.dumps(
                [
                    *records(run),
                    {"image_id": 3, "category_id": 99, "score": 1, "bbox": [0, 0, 1, 1]},
                ]
            ),
        ),
        "1 detections of classes that",
    ),
    "detections that were changed": (
        lambda run: rewrite(run, json.dumps(records(run)[::2])),
        "were files changed since?",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_about_a_run_is_reported(what: str, home: Path) -> None:
    damage, message = ODD[what]
    run = home / "runs" / "detr-resnet18-seed0"
    damage(run)
    found = analysed(home)
    assert not found.left_out
    assert any(message in note for note in found.notes[run]), found.notes[run]
    assert any(str(run) in warning and message in warning for warning in ranking.warnings(found))


@pytest.mark.parametrize("run", ["detr-resnet18-seed0", "smca-resnet18-seed1"])
def test_the_page_is_written_when_nothing_is_left_of_a_run_but_its_name(run: str, home: Path) -> None:
    for path in (home / "runs" / run).glob("*.json*"):
        path.write_bytes(b"\x00")
    page = write_report(ReportOptions((str(home / "runs"),), output=home / "report", resamples=5))
    report = read_json(page.parent / "report.json")
    assert any(run in warning for warning in report["warnings"])
    assert run in page.read_text()


def test_nothing_detected_is_an_ap_of_zero_and_counts(home: Path) -> None:
    run = home / "runs" / "detr-resnet18-seed0"
    rewrite(run, "[]")
    arm = next(arm for arm in analysed(home).arms if arm.label == "DETR, resnet18")
    assert arm.results[0].plain[0] == 0.0
    assert arm.sample("ap").mean == pytest.approx(arm.results[1].plain[0] / 2)


def test_when_none_is_finished_all_are_evaluated_after_the_latest_epoch_they_share(home: Path) -> None:
    for number, run in enumerate(sorted((home / "runs").iterdir())):
        rows = read_jsonl(run / "evaluations.jsonl")
        write_jsonl(run / "evaluations.jsonl", rows[: 1 + number % 2])
    found = analysed(home)
    assert found.level_epoch == 1
    assert {result.epoch for arm in found.arms for result in arm.results} == {1}
    assert not found.left_out


def test_an_epoch_can_be_asked_for(home: Path) -> None:
    found = analysed(home, epoch=2)
    for result in (result for arm in found.arms for result in arm.results):
        assert result.plain[0] == pytest.approx(result.record.logged(2))


def test_why_none_can_be_evaluated_is_reported_once(home: Path) -> None:
    with pytest.raises(ValueError, match=r"^none of 8 runs can be evaluated: \S+, .*: it was not evaluated") as raised:
        analysed(home, epoch=99)
    assert str(raised.value).count("it was not evaluated after epoch 99: its last evaluation was after epoch 3") == 1
    assert all(run.name in str(raised.value) for run in (home / "runs").iterdir())


def test_a_run_in_progress_is_reported_so(home: Path) -> None:
    """It is known by its own lock, held by this process."""
    from detr_container.base.lock import FolderLock

    run = home / "runs" / "smca-resnet18-seed1"
    write_jsonl(run / "evaluations.jsonl", read_jsonl(run / "evaluations.jsonl")[:2])
    with FolderLock(run):
        record = read_runs([run])[0]
        assert record.state == "running"
        assert record.faults == (f"still in progress: last evaluated after epoch 2 of {EPOCHS}",)


def test_a_planned_run_that_does_not_exist_is_named(home: Path) -> None:
    names = sorted(path.name for path in (home / "runs").iterdir())
    write_json(home / "runs" / PLAN, {"members": [*names, "smca-resnet18-seed2"]})
    found = analysed(home)
    assert list(found.left_out) == [home / "runs" / "smca-resnet18-seed2"]


def test_a_folder_that_is_no_run_is_named(home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    found = analyse(folders_of([str(home / "runs"), str(empty)]), count=10)
    assert list(found.left_out) == [empty]


def test_folders_and_patterns(home: Path) -> None:
    runs = home / "runs"
    assert len(folders_of([str(runs)])) == 4 * SEEDS
    assert len(folders_of([str(runs / "*-seed1")])) == 4
    assert folders_of([str(runs / "detr-resnet18-seed0"), str(runs / "detr-*0")])[0] == runs / "detr-resnet18-seed0"
    assert len(folders_of([str(runs / "detr-resnet18-seed0"), str(runs / "detr-*0")])) == 2
    with pytest.raises(ValueError, match=r"nowhere is neither a folder nor a pattern that fits any"):
        folders_of([str(home / "nowhere")])
    with pytest.raises(ValueError, match=r"name runs, folders of runs, or patterns"):
        folders_of([])


def test_the_same_settings_and_seed_twice_count_once(home: Path) -> None:
    run = home / "runs" / "detr-resnet18-seed0"
    shutil.copytree(run, home / "runs" / "detr-resnet18-seed0-again")
    found = analysed(home)
    assert found.left_out.keys() == {home / "runs" / "detr-resnet18-seed0-again"}
    assert "adds nothing new" in found.left_out[home / "runs" / "detr-resnet18-seed0-again"]


def test_a_run_that_has_not_started_is_not_called_damaged(tmp_path: Path) -> None:
    arms, left_out = arms_of(read_runs([tmp_path / "planned"]))
    assert not arms
    assert re.match("there is no such folder: it has not started", left_out[tmp_path / "planned"])


def test_settings_that_differ_make_arms_of_their_own_and_name_them(home: Path) -> None:
    config = home / "runs" / "detr-resnet18-seed1" / "config.json"
    values = read_json(config)
    values["train"]["lr"] = 7e-4
    write_json(config, values)
    arms, left_out = arms_of(read_runs(folders_of([str(home / "runs")])))
    labels = {arm.label for arm in arms}
    assert {"DETR, resnet18, lr=0.0003", "DETR, resnet18, lr=0.0007"} <= labels
    assert len(labels) == 5
    assert not left_out


# -- other data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "train"])
def test_other_data_are_refused(home: Path, split: str) -> None:
    run = home / "runs" / "smca-resnet18-seed1"
    line = read_jsonl(run / "provenance.jsonl")[0]
    line["data"][split]["sha256"] = "0" * 64
    write_jsonl(run / "provenance.jsonl", [line])
    word = {"val": "evaluated", "train": "trained"}[split]
    with pytest.raises(ValueError, match=rf"these runs were {word} on different data .*000000000000: \S*smca-resnet18"):
        analysed(home)


def test_other_data_are_refused_even_when_nobody_noted_them(tmp_path: Path) -> None:
    for number in (0, 1):
        world = make_data(tmp_path / f"data{number}", count=5, seed=number)
        experiment = experiment_of(tmp_path / f"data{number}", "smca", "resnet18", seed=number)
        run = make_run(tmp_path / "runs" / str(number), experiment, world, 0.5)
        line = provenance_line(experiment)
        del line["data"]
        write_jsonl(run / "provenance.jsonl", [line])
    with pytest.raises(ValueError, match=r"evaluated on different data"):
        analysed(tmp_path)


def test_an_annotation_file_that_was_edited_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=5)
    make_run(tmp_path / "runs" / "a", experiment_of(tmp_path / "data", "smca", "resnet18"), world, 0.5)
    path = tmp_path / "data" / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match=r"is not the annotation file that it was evaluated with"):
        analysed(tmp_path)


def test_an_annotation_file_that_moved_can_be_named(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=5)
    run = make_run(tmp_path / "runs" / "a", experiment_of(tmp_path / "data", "smca", "resnet18"), world, 0.5)
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere") / "annotations" / "instances_val2017.json"
    with pytest.raises(ValueError, match=r"instances_val2017\.json, does not exist: name it with --annotations"):
        analysed(tmp_path)
    assert analyse([run], annotations=moved, count=5).evaluated


def test_one_class_and_one_run_make_a_report(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=6, classes=1)
    make_run(tmp_path / "runs" / "a", experiment_of(tmp_path / "data", "smca", "resnet18"), world, 0.5)
    page = write_report(ReportOptions((str(tmp_path / "runs"),), output=tmp_path / "report", resamples=5))
    assert "There is nothing to compare" in page.read_text()


def test_data_without_images_on_disk_still_make_a_report(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=6)
    for seed in (0, 1):
        experiment = experiment_of(tmp_path / "data", "smca", "resnet18", seed)
        make_run(tmp_path / "runs" / str(seed), replace(experiment, seed=seed), world, 0.5, draw=seed)
    other = experiment_of(tmp_path / "data", "smca", "resnet50")
    make_run(tmp_path / "runs" / "other", other, world, 0.9, draw=9)
    shutil.rmtree(tmp_path / "data" / "val2017")
    page = write_report(ReportOptions((str(tmp_path / "runs"),), output=tmp_path / "report", resamples=5))
    assert "cannot be shown" in page.read_text() or "could not be drawn" in page.read_text()


def test_a_backbone_that_cannot_be_built_has_no_costs_and_is_named(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", count=6)
    experiment = experiment_of(tmp_path / "data", "smca", "timm/resnet_of_tomorrow")
    run = make_run(tmp_path / "runs" / "a", experiment, world, 0.5)
    assert read_json(run / "config.json") == to_dict(experiment)
    page = write_report(ReportOptions((str(tmp_path / "runs"),), output=tmp_path / "report", resamples=5))
    report = read_json(page.parent / "report.json")
    assert any("parameters and FLOPs are unknown" in warning for warning in report["warnings"])
