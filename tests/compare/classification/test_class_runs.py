"""Reports of classification runs that are broken, unlike each other, or alone; and how long an accuracy took."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_classifiers
import synthetic_runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from synthetic_classifiers import EPOCHS, comparison, experiment_of, make_data, make_run, provenance_line
from synthetic_runs import read_json

from detr_container.base.files import read_jsonl, write_jsonl
from detr_container.commands.cli import main
from detr_container.compare import ranking
from detr_container.compare.classification import plots, results
from detr_container.compare.classification.analysis import Analysis, analyse
from detr_container.compare.classification.exposure import exposure
from detr_container.compare.classification.milestones import Milestone, reached, target_of
from detr_container.compare.classification.published import published
from detr_container.compare.document import Figure
from detr_container.compare.options import ReportOptions
from detr_container.compare.reading import read_runs
from detr_container.compare.report import folders_of, write_report
from detr_container.config.classification import classification
from detr_container.config.experiments import named
from detr_container.tasks.classification.class_names import imagenet_ids
from detr_container.tasks.classification.predictions import NAME


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three backbones with two seeds each."""
    comparison(tmp_path)
    return tmp_path


def analysed(home: Path, epoch: int | None = None) -> Analysis:
    return analyse(folders_of([str(home / "runs")]), epoch, count=5)


def reported(home: Path, **options: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"output": home / "report", "resamples": 5, **options}
    page = write_report(ReportOptions((str(home / "runs"),), **usual))
    return dict(read_json(page.parent / "report.json"))


def table(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return next(section["tables"][name] for section in report["sections"] if name in section["tables"])


# -- how long it took -------------------------------------------------------------------------------------------------


def test_an_accuracy_is_reached_on_the_line_between_two_evaluations() -> None:
    curve = {10: 0.2, 20: 0.6, 40: 0.5, 50: 0.9}
    assert reached(curve, 0.5) == Milestone(pytest.approx(17.5), 20, interpolated=True)
    assert reached(curve, 0.6) == Milestone(20.0, 20, interpolated=True)
    assert reached(curve, 0.7) == Milestone(pytest.approx(45.0), 50, interpolated=True)
    assert reached(curve, 0.1) == Milestone(10.0, 10, interpolated=False)
    assert reached(curve, 0.91) is None
    assert reached({}, 0.1) is None


def test_a_target_may_be_given_and_missed(home: Path) -> None:
    ends = {
        name: [read_jsonl(home / "runs" / f"{name}-seed{seed}" / "evaluations.jsonl")[-1]["top1"] for seed in (0, 1)]
        for name, _ in synthetic_classifiers.BACKBONES
    }
    best = max(value for each in ends.values() for value in each)
    report = reported(home, target=best)
    rows = {row["backbone"]: row for row in table(report, "milestones")}
    for name, values in ends.items():
        there = sum(value >= best for value in values)
        assert rows[name]["reached by"] == (f"{there} of 2" if there else "not reached")
        assert (rows[name]["epochs"] is None) == (there == 0)
    assert report["summary"][1] == f"No backbone reaches {100 * best:.1f} % top-1 in every run."
    code = next(section["code"] for section in report["sections"] if section["code"])
    assert f"--target {best}" in code


def test_runs_that_were_evaluated_once_do_not_say_how_soon(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", ("cat", "dog"), images=6)
    for seed, name in enumerate(("resnet18", "mh_dw_tiny")):
        make_run(tmp_path / "runs" / name, experiment_of(world, name), world, 5.0, epochs=1, draw=seed)
    said = reported(tmp_path, target=0.1)["summary"][1]
    assert (
        said == "How soon 10.0 % top-1 was reached is not known: each run was evaluated only once (`train.eval_every`)."
    )


def test_what_an_epoch_shows_follows_from_its_steps(home: Path) -> None:
    record = read_runs([home / "runs" / "resnet18-seed0"])[0]
    experiment = classification(named("classify_demo").experiment)
    # 12 steps an epoch of the settings' 8 images; the demo's own repeats are 1.
    once = exposure(record, replace(experiment, train=replace(experiment.train, batch=8)))
    assert (once.steps, once.views, once.distinct, once.images) == (12, 96, 96, 90)
    assert record.experiment is not None
    thrice = exposure(record, classification(record.experiment))
    assert (thrice.views, thrice.distinct, thrice.repeats) == (96, 32, 3)


def test_accuracy_is_drawn_over_epochs_and_over_images_with_their_views(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines' own numbers: means over seeds; an epoch shows 32 images, each three times."""
    axes: dict[str, Axes] = {}

    def finish(figure: Canvas, name: str, caption: str, alt: str) -> Figure:
        figure.draw_without_rendering()
        axes[name] = figure.axes[0]
        return Figure(name, caption, alt, "")

    monkeypatch.setattr(plots, "finish", finish)
    found = analysed(home)
    plots.over_epochs(found, target_of(found, 0.5))
    caption = plots.over_images(found).caption
    for name, of_epoch in (("top1-epochs", 1), ("top1-images", 32)):
        lines = {line.get_label(): line for line in axes[name].lines}
        for backbone, _ in synthetic_classifiers.BACKBONES:
            curves = [
                [row["top1"] for row in read_jsonl(home / "runs" / f"{backbone}-seed{seed}" / "evaluations.jsonl")]
                for seed in (0, 1)
            ]
            x, y = lines[backbone].get_data()
            assert list(x) == [of_epoch * epoch for epoch in range(1, EPOCHS + 1)]
            assert list(y) == pytest.approx([50 * (a + b) for a, b in zip(*curves, strict=True)])
    assert (axes["top1-epochs"].get_xlabel(), axes["top1-images"].get_xlabel()) == ("epoch", "different images seen")
    (views,) = axes["top1-images"].child_axes
    assert views.get_xlabel() == "views"
    assert views.get_xlim() == pytest.approx([3 * end for end in axes["top1-images"].get_xlim()])
    assert "Each is seen 3 times in its epoch" in caption


def test_runs_that_share_no_seed_are_said_to_be_of_others(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", ("cat", "dog"), images=6)
    for seed, name in enumerate(("resnet18", "mh_dw_tiny")):
        make_run(tmp_path / "runs" / name, experiment_of(world, name, seed), world, 1.0, draw=seed)
    (pair,) = ranking.pairs_of(analysed(tmp_path).evaluated, ["top1"])
    found = results.discordant([pair], 10)
    assert found.rows[0][-1] == 1
    assert "of arms without a seed in common, runs in the order of their seeds" in found.caption


def test_what_an_accuracy_cost_does_not_depend_on_the_epoch_that_is_compared(home: Path) -> None:
    """Device-hours are logged to the end of a run, whichever of its evaluations counts."""
    costs = [
        {row["backbone"]: row["device-hours"] for row in table(reported(home, target=0.2, **more), "milestones")}
        for more in ({}, {"epoch": 2})
    ]
    assert costs[0] == costs[1]
    assert min(costs[0].values()) > 0


def test_one_image_of_a_class_shows_no_difference(tmp_path: Path) -> None:
    """One network right on every image, the other on none: of a class of one image that says nothing, of many all."""
    world = make_data(tmp_path / "data", ("cat", "dog", "eel"), images=1)
    for number in range(2, 13):
        shutil.copy(tmp_path / "data" / "val" / "cat" / "000.png", tmp_path / "data" / "val" / "cat" / f"{number}.png")
    val = synthetic_classifiers.open_folder(tmp_path / "data" / "val")
    world = replace(world, val=val, hard=np.zeros(len(val)))
    for name, skill in (("resnet18", 50.0), ("mh_dw_tiny", -50.0)):
        make_run(tmp_path / "runs" / name, experiment_of(world, name), world, skill)
    report = reported(tmp_path)
    rows = {row["class"]: row for row in table(report, "classes-1")}
    assert {name: row["difference"] for name, row in rows.items()} == dict.fromkeys(("cat", "dog", "eel"), 100)
    assert {name for name, row in rows.items() if row["real among all classes"]} == {"cat"}
    best = next(row for row in table(report, "results") if row["backbone"] == "resnet18")
    assert best["top-1"] == best["top-1 high"] == 100
    assert best["top-1 low"] < 90


# -- runs that are not as they should be ------------------------------------------------------------------------------


def test_runs_of_two_tasks_are_refused_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_runs.comparison(home / "detectors", 1)
    assert main(["report", str(home / "runs"), str(home / "detectors" / "runs"), "--output", str(home / "page")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "these runs are of different tasks, with no metric in common (classification: " in line
    assert "; detection: " in line
    assert not (home / "page").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--annotations", "x.json"], "--annotations x.json: classification has no such file; leave it out"),
        (["--target", "1.5"], "target"),
    ],
)
def test_options_of_another_task_are_refused(
    option: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(home / "runs"), *option]) == 2
    assert message in capsys.readouterr().err


def test_a_target_is_of_classification(tmp_path: Path) -> None:
    synthetic_runs.comparison(tmp_path, 1)
    with pytest.raises(ValueError, match=r"--target 0.5: it is an accuracy, for runs of classification"):
        write_report(ReportOptions((str(tmp_path / "runs"),), output=tmp_path / "report", target=0.5))


def test_one_run_alone_has_a_report(tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", ("cat", "dog"), images=6)
    make_run(tmp_path / "runs" / "a", experiment_of(world, "resnet18"), world, 1.0)
    report = reported(tmp_path)
    assert report["title"] == "One classifier on 10 images"
    assert "There is nothing to compare" in report["summary"][0]
    (row,) = table(report, "results")
    # Of two classes the five surest are all.
    assert "top-5" not in row
    assert row["top-1 low"] <= row["top-1"] <= row["top-1 high"]
    assert "The models agree on every image, or there is only one." in str(report["sections"])


def test_broken_and_unfinished_runs_are_named_and_in_no_mean(home: Path) -> None:
    runs = home / "runs"
    (runs / "resnet18-seed1" / "detections" / f"epoch-{EPOCHS:03d}" / NAME).write_bytes(b"not columns")
    (runs / "mh_dw_tiny-seed1" / "detections" / f"epoch-{EPOCHS:03d}" / NAME).unlink()
    (runs / "container_light_tiny-seed1" / "config.json").write_text("{")
    rows = read_jsonl(runs / "mh_dw_tiny-seed0" / "evaluations.jsonl")
    write_jsonl(runs / "mh_dw_tiny-seed0" / "evaluations.jsonl", rows[:2])
    report = reported(home)
    for name, why in (
        ("resnet18-seed1", "is no whole file of predictions"),
        ("mh_dw_tiny-seed1", "train.keep_predictions=all"),
        ("container_light_tiny-seed1", "its settings cannot be read"),
        ("mh_dw_tiny-seed0", f"last evaluated after epoch 2 of {EPOCHS}"),
    ):
        assert any(str(runs / name) in line and "is in no mean" in line and why in line for line in report["warnings"])
    seeds = {row["backbone"]: row["seeds"] for row in table(report, "results")}
    assert seeds == {"container_light_tiny": "1", "mh_dw_tiny": "0 of 2", "resnet18": "1 of 2"}


def test_while_none_is_finished_all_are_evaluated_after_the_same_epoch(home: Path) -> None:
    for number, run in enumerate(sorted((home / "runs").iterdir())):
        write_jsonl(run / "evaluations.jsonl", read_jsonl(run / "evaluations.jsonl")[: 2 + number % 2])
    found = analysed(home)
    assert found.level_epoch == 2
    for arm in found.arms:
        for result in arm.results:
            expected = synthetic_classifiers.last_predictions(result.record.folder, 2).top(1).mean()
            assert result.headline == pytest.approx(expected)
    assert analysed(home, epoch=1).arms[0].results[0].epoch == 1


def test_predictions_that_were_exchanged_are_noticed(home: Path) -> None:
    one, other = (home / "runs" / f"{name}-seed0" for name in ("container_light_tiny", "resnet18"))
    place = Path("detections") / f"epoch-{EPOCHS:03d}" / NAME
    shutil.copy(other / place, one / place)
    found = analysed(home)
    assert any("were files changed since?" in note for note in found.notes[one])


def test_one_class_for_every_image_is_said(home: Path) -> None:
    run = home / "runs" / "resnet18-seed0"
    found = synthetic_classifiers.last_predictions(run)
    replace(found, classes=np.zeros_like(found.classes)).write(run / "detections" / f"epoch-{EPOCHS:03d}")
    assert "it takes every image for the same class" in analysed(home).notes[run]


# -- data and settings ------------------------------------------------------------------------------------------------


def test_other_validation_images_are_refused(home: Path) -> None:
    other = make_data(home / "other", ("ant", "bee", "cat", "dog", "eel", "owl"))
    make_run(home / "runs" / "z", experiment_of(other, "resnet50"), other, 1.0)
    with pytest.raises(ValueError, match=r"evaluated on different data \(SHA-256 of the list of files"):
        analysed(home)
    write_jsonl(home / "runs" / "z" / "provenance.jsonl", [])
    with pytest.raises(ValueError, match=r"evaluated on different data: .*lists of images, labels or classes"):
        analysed(home)


def test_shares_of_the_training_set_are_no_other_data(tmp_path: Path) -> None:
    """Each seed chooses its own; another share is a difference that is named."""
    world = make_data(tmp_path / "data")
    for seed in (0, 1):
        for backbone in ("resnet18", "mh_dw_tiny"):
            experiment = experiment_of(world, backbone, seed, fraction=0.5)
            make_run(tmp_path / "runs" / f"{backbone}-{seed}", experiment, world, 1.0, draw=seed)
    lines = [read_jsonl(tmp_path / "runs" / f"resnet18-{seed}" / "provenance.jsonl")[0] for seed in (0, 1)]
    assert lines[0]["data"]["train"]["sha256"] != lines[1]["data"]["train"]["sha256"]
    assert analysed(tmp_path).differences == ()
    make_run(tmp_path / "runs" / "whole", experiment_of(world, "resnet50"), world, 1.0)
    (difference,) = analysed(tmp_path).differences
    assert str(difference).startswith("share of the training set: data.fraction differs: 0.5 (")


@pytest.mark.parametrize(
    ("section", "changed", "words"),
    [
        ("train", {"micro_batch": 4}, "images per forward pass: train.micro_batch differs"),
        ("data", {"mixup": 0.5}, "augmentation: data.mixup differs"),
        ("data", {"size": 40}, "input size: data.size differs"),
        ("data", {"grey": True}, "colour: data.grey differs"),
        ("backbone", {"norm": "frozen"}, "norm policy: backbone.norm differs"),
        ("loss", {"smoothing": 0.0}, "loss: loss.smoothing differs"),
    ],
)
def test_settings_that_differ_are_warnings(section: str, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    world = make_data(tmp_path / "data", ("cat", "dog"), images=6)
    make_run(tmp_path / "runs" / "a", experiment_of(world, "resnet18"), world, 1.0)
    experiment = experiment_of(world, "mh_dw_tiny")
    other = replace(experiment, **{section: replace(getattr(experiment, section), **changed)})
    make_run(tmp_path / "runs" / "b", other, world, 1.2, draw=3)
    assert any(str(one).startswith(words) and not one.expected for one in analysed(tmp_path).differences)


def test_other_versions_and_training_images_are_named(home: Path) -> None:
    run = home / "runs" / "resnet18-seed0"
    record = read_runs([run])[0]
    assert record.experiment is not None
    world = synthetic_classifiers.World(
        home / "data", synthetic_classifiers.open_folder(home / "data" / "val"), np.ones(1)
    )
    packages = {"torch": "2.0.0", "torchvision": "0.29.1", "timm": "1.0.31"}
    line = provenance_line(world, classification(record.experiment), packages=packages, world_size=2)
    write_jsonl(run / "provenance.jsonl", [line])
    found = {(one.topic, one.name) for one in analysed(home).differences}
    assert found == {("code version", "torch"), ("device", "processes")}
    line["data"]["train"]["sha256"] = "0" * 64
    write_jsonl(run / "provenance.jsonl", [line])
    with pytest.raises(ValueError, match=r"these runs were trained on different data"):
        analysed(home)


def test_images_that_are_gone_are_said_and_the_rest_is_there(home: Path) -> None:
    shown = reported(home)
    assert (home / "report" / "figures" / "disagreement.jpg").is_file()
    assert "figures" in shown["sections"][0]
    shutil.rmtree(home / "data" / "val")
    shutil.rmtree(home / "report")
    report = reported(home)
    assert any("The images cannot be shown: " in line for section in report["sections"] for line in section["text"])
    assert not (home / "report" / "figures" / "disagreement.jpg").exists()
    assert [row["top-1"] for row in table(report, "results")] == [row["top-1"] for row in table(shown, "results")]


def test_published_accuracies_are_of_imagenet_alone() -> None:
    ids = imagenet_ids()
    light, deit = (classification(named(name).experiment) for name in ("container_light_in1k", "deit_s_in1k"))
    found = published(light, ids)
    assert found is not None
    assert (found.value, found.top5) == (82.26, 96.2)
    deits = published(deit, list(reversed(ids)))
    assert deits is not None
    assert deits.value == 79.85
    assert published(light, ids[:999]) is None
    assert published(light, [*ids[:999], "n00000000"]) is None
    other = replace(light, backbone=replace(light.backbone, name="resnet18"))
    assert published(other, ids) is None


def test_published_accuracies_stand_in_columns_of_their_own(tmp_path: Path) -> None:
    """On a thousand classes named by ImageNet's ids, which the page shows as words."""
    world = make_data(tmp_path / "data", imagenet_ids(), images=1)
    make_run(tmp_path / "runs" / "a", experiment_of(world, "container_light"), world, 3.0, epochs=EPOCHS)
    make_run(tmp_path / "runs" / "b", experiment_of(world, "mh_dw"), world, 2.0, epochs=EPOCHS, draw=1)
    report = reported(tmp_path)
    rows = {row["backbone"]: row for row in table(report, "results")}
    assert rows["container_light"]["published top-1"] == 82.26
    assert rows["mh_dw"]["published top-1"] is None
    classes = [row["class"] for row in table(report, "class-accuracy")]
    assert len(classes) == 20
    assert not any(name.startswith("n0") for name in classes)
