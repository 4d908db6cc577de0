"""Mask AP in reports: every number of it computed again with pycocotools, beside box metrics that it leaves alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import Floats, pycocotools_metrics, repeated
from naive_intervals import interval_of, real_of
from synthetic_runs import EPOCHS, WITH_MASKS, comparison, experiment_of, make_data, make_run, read_json

from detr_container.base.files import read_jsonl, write_json, write_jsonl
from detr_container.compare.analysis import Analysis, analyse
from detr_container.compare.disagreement import sheets
from detr_container.compare.intervals import draws
from detr_container.compare.matching import Ground
from detr_container.compare.options import ReportOptions
from detr_container.compare.precision import METRICS
from detr_container.compare.report import folders_of, write_report
from detr_container.tasks.detection.coco_results import read_kept
from detr_container.tasks.detection.detections import NAME, Detections
from detr_container.tasks.detection.scoring import read_truth

RESAMPLES, SEEDS = 6, 2
LIGHT, RESNET = "Mask R-CNN, container_light_tiny", "Mask R-CNN, resnet18"
PAIR = "Mask R-CNN: container_light_tiny \N{MINUS SIGN} resnet18"
PLACES = {name: place for place, name in enumerate(METRICS)}
HEADLINE = {"mask AP": "ap", "mask AP50": "ap50", "mask AP75": "ap75"}
SIZES = {"mask AP small": "ap_small", "mask AP medium": "ap_medium", "mask AP large": "ap_large"}


@dataclass(frozen=True)
class Reported:
    """Runs of Mask R-CNN beside one of DETR, and their report."""

    home: Path

    @cached_property
    def report(self) -> dict[str, Any]:
        page = write_report(ReportOptions((str(self.home / "runs"),), output=self.home / "report", resamples=RESAMPLES))
        found: dict[str, Any] = read_json(page.parent / "report.json")
        return found

    @cached_property
    def metrics(self) -> dict[Path, tuple[Floats, Floats]]:
        """Of each run with masks, of the data and of every resample with images really repeated: [1 + B, 6] and by
        class [1 + B, K, 6]."""
        truth = Ground.of(read_truth(self.home / "data" / "annotations" / "instances_val2017.json", masks=True))
        times = [np.ones(len(truth.images), dtype=np.int64), *draws(len(truth.images), RESAMPLES)]
        found = {}
        for run in (run for label in (LIGHT, RESNET) for run in self.runs(label)):
            kept = read_kept(run / "detections" / f"epoch-{EPOCHS:03d}")
            each = [pycocotools_metrics(*repeated(truth, kept, count), masks=True) for count in times]
            found[run] = np.stack([overall for _, overall in each]), np.stack([by_class for by_class, _ in each])
        return found

    def runs(self, label: str) -> list[Path]:
        backbone = label.split(", ")[1]
        return [self.home / "runs" / f"mask_rcnn-{backbone}-seed{seed}" for seed in range(SEEDS)]

    def table(self, name: str) -> list[dict[str, Any]]:
        return next(section["tables"][name] for section in self.report["sections"] if name in section["tables"])

    def row(self, name: str, label: str) -> dict[str, Any]:
        head, backbone = label.split(", ")
        return next(row for row in self.table(name) if (row["head"], row["backbone"]) == (head, backbone))

    def sides(self, metric: str, label: int | None = None) -> list[list[np.ndarray]]:
        """A metric of the runs of both arms, of one class or of all."""
        sides = []
        for arm in (LIGHT, RESNET):
            each = [self.metrics[run] for run in self.runs(arm)]
            place = PLACES[metric]
            sides.append([one[:, place] if label is None else by[:, label, place] for one, by in each])
        return sides

    def text(self, title: str) -> str:
        return " ".join(next(section["text"] for section in self.report["sections"] if section["title"] == title))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    home = tmp_path_factory.mktemp("masks")
    comparison(home, SEEDS, WITH_MASKS)
    return Reported(home)


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def check_range(row: dict[str, Any], name: str, interval: dict[str, float]) -> None:
    for part, key in (("", "value"), (" low", "low"), (" high", "high")):
        assert row[name + part] == close(interval[key])


def interval(sides: Sequence[list[np.ndarray]]) -> dict[str, float]:
    return interval_of(24, *sides)


@pytest.mark.parametrize("label", [LIGHT, RESNET])
def test_the_headline_has_mask_ap_as_pycocotools_computes_it(label: str, reported: Reported) -> None:
    row = reported.row("results", label)
    for title, metric in HEADLINE.items():
        values = [reported.metrics[run][0][0, PLACES[metric]] for run in reported.runs(label)]
        assert row[title] == close(100 * statistics.fmean(values))
        assert row[f"{title} sd"] == close(100 * statistics.stdev(values))
    assert row["mask AP"] != row["AP"]


def test_what_finds_no_masks_has_none(reported: Reported) -> None:
    for name in ("results", "sizes"):
        row = reported.row(name, "DETR, resnet18")
        assert [value for key, value in row.items() if key.startswith("mask")] == [None] * len(
            [key for key in row if key.startswith("mask")]
        )
        assert any(key.startswith("mask") for key in row)
    assert [row["difference"] for row in reported.table("mask-differences")] == [PAIR]
    assert len(reported.table("differences")) == 2


def test_differences_and_their_intervals(reported: Reported) -> None:
    (row,), (by_size,) = reported.table("mask-differences"), reported.table("mask-size-differences")
    for title, metric in HEADLINE.items():
        check_range(row, title, interval(reported.sides(metric)))
    p = interval(reported.sides("ap"))["p"]
    assert row["p"] == close(p)
    assert row["mask AP is"] == ("higher" if p <= 0.05 else "not distinguishable")
    found = {title: interval(reported.sides(metric)) for title, metric in SIZES.items()}
    for title, one in found.items():
        check_range(by_size, title, one)
    real = real_of({title: one["p"] for title, one in found.items()})
    assert by_size["real"] == (", ".join(title.split()[-1] for title in SIZES if title in real) or "none")
    for label, place in ((LIGHT, 0), (RESNET, 1)):
        for title, metric in SIZES.items():
            check_range(reported.row("sizes", label), title, interval([reported.sides(metric)[place]]))


def test_classes_have_their_own_intervals(reported: Reported) -> None:
    rows = {row["class"]: row for row in reported.table("mask-classes-1")}
    assert list(rows) == sorted(rows, key=lambda name: -rows[name]["difference"])
    for label, name in enumerate(f"class {k}" for k in range(3)):
        sides = reported.sides("ap", label)
        for side, backbone in zip(sides, ("container_light_tiny", "resnet18"), strict=True):
            assert rows[name][backbone] == close(100 * statistics.fmean(one[0] for one in side))
        check_range(rows[name], "difference", interval(sides))
    assert {row["objects"] for row in rows.values()} == {row["objects"] for row in reported.table("classes-1")}


def test_each_run_has_its_masks_metrics_as_data(reported: Reported) -> None:
    for run, (overall, by_class) in reported.metrics.items():
        data = reported.report["runs"][str(run)]
        assert [data[f"mask_{name}"] for name in METRICS] == [close(value) for value in overall[0]]
        assert list(data["mask_ap_by_class"].values()) == [close(value) for value in by_class[0, :, 0]]
        # As the run logged it.
        assert data["mask_ap"] == close(read_jsonl(run / "evaluations.jsonl")[-1]["mask_ap"])
    of_boxes = reported.report["runs"][str(reported.home / "runs" / "detr-resnet18-seed0")]
    assert not any(key.startswith("mask") for key in of_boxes)
    assert not any(row["remarks"] for row in reported.table("runs"))


def test_the_summary_ranks_by_boxes_and_by_masks(reported: Reported) -> None:
    first, second = reported.report["summary"]
    assert first.startswith("Mask R-CNN: ")
    assert "points of AP" in first
    row = reported.row("results", LIGHT)
    assert second.startswith("Mask R-CNN by mask AP: ")
    assert f"container_light_tiny ({row['mask AP']:.1f})" in second
    assert "points of mask AP" in second


def without_masks(home: Path) -> None:
    """Take the masks from all that runs have kept."""
    for path in home.glob(f"runs/*/detections/*/{NAME}"):
        replace(Detections.read(path), masks=None).write(path)


def test_masks_change_nothing_about_boxes(reported: Reported, tmp_path: Path) -> None:
    comparison(tmp_path, SEEDS, WITH_MASKS)
    without_masks(tmp_path)
    plain = Reported(tmp_path)
    masks = 0
    for section in reported.report["sections"]:
        for name, rows in section["tables"].items():
            if name.startswith("mask"):
                masks += 1
                continue
            for row, other in zip(rows, plain.table(name), strict=True):
                kept = {key: value for key, value in row.items() if not key.startswith(("mask AP", "remarks", "run"))}
                assert kept == {key: other[key] for key in kept}
    assert masks == 3
    remarks = {row["run"]: row["remarks"] for row in plain.table("runs")}
    assert {bool(text) for run, text in remarks.items() if "detr" in run} == {False}
    expected = "its detections have no masks, so it is in no mean of mask AP"
    assert {text for run, text in remarks.items() if "mask_rcnn" in run} == {expected}


def test_what_is_of_boxes_says_so_where_there_are_masks(reported: Reported) -> None:
    assert reported.text("Results").startswith("AP of boxes, and mask AP of the detectors that find masks, in per cent")
    assert "are of boxes, also of detectors that find masks" in reported.text("Kinds of errors")
    assert "the AP of an image is that of its boxes" in reported.text("Where the models disagree")


def test_learning_curves_are_of_what_each_head_has(reported: Reported) -> None:
    drawn = {name: alt for section in reported.report["sections"] for name, alt in section["figures"].items()}
    kinds: dict[str, list[str]] = {"1": [], "2": []}
    for name in drawn:
        if name.startswith("curves-"):
            kinds[name[-1]].append(name[len("curves-") : -2])
    assert kinds["1"] == ["ap", "loss", "class", "l1", "giou"]
    assert kinds["2"] == ["ap", "mask_ap", "loss", "class", "box", "mask", "proposal_class", "proposal_box"]
    ends = [100 * read_jsonl(run / "evaluations.jsonl")[-1]["mask_ap"] for run in reported.runs(LIGHT)]
    assert f"container_light_tiny {statistics.fmean(ends):.3g}" in drawn["curves-mask_ap-2"]
    ends = [read_jsonl(run / "metrics.jsonl")[-1]["losses"]["proposal_box"] for run in reported.runs(LIGHT)]
    assert f"container_light_tiny {statistics.fmean(ends):.3g}" in drawn["curves-proposal_box-2"]
    text = reported.text("Learning curves")
    assert "The training loss of DETR and SMCA-DETR is summed over decoder layers" in text
    assert "That of RetinaNet and Mask R-CNN is the sum of its terms" in text


def test_learning_curves_of_retinanet_alone_speak_of_no_decoder(tmp_path: Path) -> None:
    comparison(tmp_path, 1, (("retinanet", "resnet18", 0.5), ("retinanet", "container_light_tiny", 0.6)))
    reported = Reported(tmp_path)
    assert "decoder" not in reported.text("Learning curves")
    assert "mask" not in (tmp_path / "report" / "report.md").read_text().replace("Mask R-CNN", "")
    figures = next(one["figures"] for one in reported.report["sections"] if one["title"] == "Learning curves")
    assert list(figures) == ["curves-ap-1", "curves-loss-1", "curves-class-1", "curves-box-1"]


def one_run(home: Path) -> tuple[Path, Path]:
    """A Mask R-CNN's run, and the annotation file of its evaluation."""
    world = make_data(home / "data", count=6, masks=True)
    run = make_run(home / "runs" / "a", experiment_of(home / "data", "mask_rcnn", "resnet18"), world, 1.0)
    return run, home / "data" / "annotations" / "instances_val2017.json"


def analysed(home: Path) -> Analysis:
    return analyse(folders_of([str(home / "runs")]), count=4)


def test_masks_that_were_changed_are_noticed(tmp_path: Path) -> None:
    run, _ = one_run(tmp_path)
    assert analysed(tmp_path).notes[run] == ()
    rows = read_jsonl(run / "evaluations.jsonl")
    write_jsonl(run / "evaluations.jsonl", [{**row, "mask_ap": row["mask_ap"] / 2} for row in rows])
    (note,) = analysed(tmp_path).notes[run]
    assert note.startswith("its masks give mask AP ")
    assert "were files changed since?" in note


def test_data_without_segmentations_still_have_boxes(tmp_path: Path) -> None:
    run, path = one_run(tmp_path)
    whole = analysed(tmp_path)
    content = read_json(path)
    for row in content["annotations"]:
        del row["segmentation"]
    write_json(path, content)
    lines = read_jsonl(run / "provenance.jsonl")
    for line in lines:
        del line["data"]
    write_jsonl(run / "provenance.jsonl", lines)
    found = analysed(tmp_path)
    assert found.by_masks == []
    assert found.arms[0].results[0].plain.tolist() == whole.arms[0].results[0].plain.tolist()
    (note,) = found.notes[run]
    assert note.startswith("its masks are not evaluated: ")
    assert "\n" not in note


def test_a_mask_of_another_size_than_its_image_leaves_the_run_out(tmp_path: Path) -> None:
    run, _ = one_run(tmp_path)
    kept = run / "detections" / f"epoch-{EPOCHS:03d}" / NAME
    found = Detections.read(kept)
    other = make_run(
        tmp_path / "runs" / "b",
        experiment_of(tmp_path / "data", "mask_rcnn", "resnet18", seed=1),
        make_data(tmp_path / "again", count=6, masks=True),
        1.0,
    )
    assert found.masks is not None
    swapped = replace(found.masks, sizes=found.masks.sizes[:, ::-1].copy())
    replace(found, masks=swapped).write(kept)
    analysis = analysed(tmp_path)
    assert list(analysis.left_out) == [run]
    assert "Masks are as large as the image on disk" in analysis.left_out[run]
    assert [one.record.folder for one in analysis.by_masks[0].results] == [other]


def test_masks_are_drawn_where_they_are_found(reported: Reported) -> None:
    whole = analysed(reported.home)
    bare = []
    for arm in whole.arms:
        kept = [replace(one, found=one.found._replace(masks=None)) for one in arm.results]
        bare.append(replace(arm, results=tuple(kept)))
    without = replace(whole, arms=tuple(bare), ground=replace(whole.ground, masks=None))
    (drawn, _), (plain, _) = sheets(whole, count=2), sheets(without, count=2)
    assert len(drawn) == 2
    for one, other in zip(drawn, plain, strict=True):
        same = {title.partition(":")[0]: a == b for (title, a), (_, b) in zip(one.panels, other.panels, strict=True)}
        assert same == {"ground truth": False, "DETR, resnet18": True, LIGHT: False, RESNET: False}
