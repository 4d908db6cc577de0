"""Every number of a report, computed again in the most literal way, from runs with several seeds and with one."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_intervals import interval_of, real_of
from synthetic_runs import EPOCHS, comparison, experiment_of, make_data, make_run, read_json, records
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.base.files import read_jsonl, write_json
from detr_container.compare import results
from detr_container.compare.analysis import analyse
from detr_container.compare.document import Section
from detr_container.compare.errors import KINDS
from detr_container.compare.options import ReportOptions
from detr_container.compare.report import write_report
from detr_container.config.settings import load
from detr_container.datasets.coco_classes import COCO
from detr_container.tasks.detection.build import build_detector
from detr_container.tasks.detection.scoring import score

RESAMPLES = 8
SIX = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}
BY_SIZE = (("AP small", "ap_small"), ("AP medium", "ap_medium"), ("AP large", "ap_large"))
LABELS = [f"{head}, {backbone}" for head in ("DETR", "SMCA-DETR") for backbone in ("container_light_tiny", "resnet18")]


@dataclass(frozen=True)
class Reported:
    """Runs and their report."""

    home: Path
    seeds: int
    report: dict[str, Any]

    def table(self, name: str) -> list[dict[str, Any]]:
        return next(section["tables"][name] for section in self.report["sections"] if name in section["tables"])

    def runs(self, label: str) -> list[Path]:
        head, backbone = label.split(", ")
        kind = {"DETR": "detr", "SMCA-DETR": "smca"}[head]
        return [self.home / "runs" / f"{kind}-{backbone}-seed{seed}" for seed in range(self.seeds)]

    def row(self, name: str, label: str) -> dict[str, Any]:
        head, backbone = label.split(", ")
        return next(row for row in self.table(name) if (row["head"], row["backbone"]) == (head, backbone))

    @property
    def truth(self) -> Path:
        return self.home / "data" / "annotations" / "instances_val2017.json"


@pytest.fixture(scope="module", params=[1, 2], ids=["one seed", "two seeds"])
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    home = tmp_path_factory.mktemp("reported")
    comparison(home, request.param)
    options = ReportOptions((str(home / "runs"),), output=home / "report", resamples=RESAMPLES)
    page = write_report(options)
    return Reported(home, request.param, read_json(page.parent / "report.json"))


def scores_of(run: Path, truth: Path, epoch: int = EPOCHS) -> dict[str, Any]:
    """pycocotools' scores of a run's detections."""
    return score(truth, records(run, epoch), "pycocotools").to_dict()


def close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def check_range(row: dict[str, Any], name: str, interval: dict[str, float]) -> None:
    for part, key in (("", "value"), (" low", "low"), (" high", "high")):
        assert row[name + part] == close(interval[key])


def check_spread(row: dict[str, Any], name: str, values: list[float]) -> None:
    assert row[name] == close(100 * statistics.fmean(values))
    assert row[f"{name} sd"] == (close(100 * statistics.stdev(values)) if len(values) > 1 else None)
    assert row[f"{name} seeds"] == len(values)


@pytest.mark.parametrize("label", LABELS)
def test_the_headline_has_the_metrics_of_pycocotools(label: str, reported: Reported) -> None:
    row = reported.row("results", label)
    found = [scores_of(run, reported.truth) for run in reported.runs(label)]
    for name, key in SIX.items():
        check_spread(row, name, [one[key] for one in found])
    assert row["seeds"] == str(reported.seeds)


@pytest.mark.parametrize("label", LABELS)
def test_the_best_epoch_stands_by_itself(label: str, reported: Reported) -> None:
    best = [max(scores_of(run, reported.truth, epoch)["ap"] for epoch in (1, 2, 3)) for run in reported.runs(label)]
    check_spread(reported.row("results", label), "best-epoch AP", best)


@pytest.mark.parametrize("label", LABELS)
def test_what_it_cost(label: str, reported: Reported) -> None:
    row, logs = reported.row("results", label), [read_jsonl(run / "metrics.jsonl") for run in reported.runs(label)]
    experiment = load(reported.runs(label)[0] / "config.json")
    model = build_detector(experiment, 3, weights=False).eval()
    assert row["parameters, M"] == close(sum(p.numel() for p in model.parameters()) / 1e6)
    # Every image is 640 x 480, and comes out as 64 x 48.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 48, 64), torch.tensor([[48, 64]]))
    assert row["GFLOPs"] == close(counter.get_total_flops() / 1e9)
    assert row["images/s"] == close(
        statistics.fmean(statistics.median(r["images_per_second"] for r in log) for log in logs)
    )
    assert row["memory, GiB"] == close(max(r["memory_gib"] for log in logs for r in log))
    hours = []
    for log in logs:
        steps = np.diff([0, *(r["step"] for r in log)])
        hours.append(sum(n * experiment.train.batch / r["images_per_second"] for n, r in zip(steps, log, strict=True)))
    assert row["device-hours"] == close(statistics.fmean(hours) / 3600)


def resampled(reported: Reported) -> dict[Path, list[dict[str, Any]]]:
    """The metrics of every run on data sets in which images are really repeated as often as they were drawn."""
    content, rng = read_json(reported.truth), np.random.default_rng(0)
    ids = sorted(image["id"] for image in content["images"])
    found: dict[Path, list[dict[str, Any]]] = {run: [] for label in LABELS for run in reported.runs(label)}
    target = reported.home / "resampled.json"
    for _ in range(RESAMPLES):
        drawn = [ids[index] for index in rng.integers(0, len(ids), len(ids))]
        new = {image_id: [1000 * image_id + n for n in range(drawn.count(image_id))] for image_id in ids}
        rows = [{**row, "image_id": i} for row in content["annotations"] for i in new[row["image_id"]]]
        images = [{**image, "id": i} for image in content["images"] for i in new[image["id"]]]
        write_json(
            target,
            {**content, "images": images, "annotations": [{**row, "id": n} for n, row in enumerate(rows, start=1)]},
        )
        for run, metrics in found.items():
            copies: list[Any] = [{**row, "image_id": i} for row in records(run) for i in new[row["image_id"]]]
            metrics.append(score(target, copies, "pycocotools").to_dict())
    return found


def expected(reported: Reported, a: list[np.ndarray], b: list[np.ndarray] | None = None) -> dict[str, float]:
    return interval_of(len(read_json(reported.truth)["images"]), a, b)


def metrics_of(reported: Reported, drawn: dict[Path, list[dict[str, Any]]], label: str, key: str) -> list[np.ndarray]:
    return [
        np.array([scores_of(run, reported.truth)[key], *(one[key] for one in drawn[run])])
        for run in reported.runs(label)
    ]


def pairs() -> Iterator[tuple[str, str]]:
    for a, b in itertools.combinations(LABELS, 2):
        if a.split(", ")[0] == b.split(", ")[0] or a.split(", ")[1] == b.split(", ")[1]:
            yield a, b


def name_of(a: str, b: str) -> str:
    (head, backbone), (other_head, other_backbone) = a.split(", "), b.split(", ")
    if head == other_head:
        return f"{head}: {backbone} \N{MINUS SIGN} {other_backbone}"
    return f"{backbone}: {head} \N{MINUS SIGN} {other_head}"


def test_differences_and_their_intervals(reported: Reported) -> None:
    drawn = resampled(reported)
    rows = {row["difference"]: row for row in reported.table("differences")}
    assert len(rows) == len(list(pairs()))
    by_size = {row["difference"]: row for row in reported.table("size-differences")}
    assert list(by_size) == list(rows)
    p_values, p_by_size = dict[str, float](), dict[tuple[str, str], float]()
    for a, b in pairs():
        name = name_of(a, b)
        a, b, name = (a, b, name) if name in rows else (b, a, name_of(b, a))
        for column, key in (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), *BY_SIZE):
            interval = expected(reported, metrics_of(reported, drawn, a, key), metrics_of(reported, drawn, b, key))
            check_range((by_size if (column, key) in BY_SIZE else rows)[name], column, interval)
            if key == "ap":
                assert interval["value"] >= 0
                assert rows[name]["p"] == close(interval["p"])
                p_values[name] = interval["p"]
            elif (column, key) in BY_SIZE:
                p_by_size[name, column.removeprefix("AP ")] = interval["p"]
    real = real_of(p_values)
    for name in p_values:
        if name not in real:
            assert rows[name]["AP is"] == "not distinguishable"
        else:
            assert rows[name]["AP is"].startswith("higher")
            assert ("seeds not measured" in rows[name]["AP is"]) == (reported.seeds == 1)
    real_sizes = real_of(p_by_size)
    for name, row in by_size.items():
        words = [word for pair, word in p_by_size if pair == name and (pair, word) in real_sizes]
        assert row["real"] == (", ".join(words) or "none")
    for label in LABELS:
        for column, key in BY_SIZE:
            check_range(
                reported.row("sizes", label), column, expected(reported, metrics_of(reported, drawn, label, key))
            )
    check_classes(reported, drawn)


def check_classes(reported: Reported, drawn: dict[Path, list[dict[str, Any]]]) -> None:
    """Differences by class, for both heads."""
    content = read_json(reported.truth)
    names = {row["id"]: row["name"] for row in content["categories"]}
    for number, head in enumerate(("DETR", "SMCA-DETR"), start=1):
        rows = reported.table(f"classes-{number}")
        a, b = [key for key in rows[0] if key in ("container_light_tiny", "resnet18")]
        assert len(rows) == len(names)
        for row in rows:
            sides = []
            for backbone in (a, b):
                runs = reported.runs(f"{head}, {backbone}")
                plain = [scores_of(run, reported.truth) for run in runs]
                sides.append(
                    [
                        np.array([of_class(one, row["class"]) for one in (first, *drawn[run])])
                        for run, first in zip(runs, plain, strict=True)
                    ]
                )
                assert row[backbone] == close(100 * statistics.fmean(side[0] for side in sides[-1]))
            check_range(row, "difference", expected(reported, *sides))
            count = sum(names[o["category_id"]] == row["class"] and not o["iscrowd"] for o in content["annotations"])
            assert row["objects"] == count


def of_class(scores: dict[str, Any], name: str) -> float:
    return next(row["ap"] for row in scores["per_class"] if row["name"] == name)


@pytest.mark.parametrize("label", LABELS)
def test_every_run_by_itself(label: str, reported: Reported) -> None:
    rows = {row["run"]: row for row in reported.table("runs")}
    for seed, run in enumerate(reported.runs(label)):
        row, found = rows[str(run)], scores_of(run, reported.truth)
        assert row["seed"] == str(seed)
        assert row["AP"] == close(100 * found["ap"])
        assert (row["last epoch"], row["evaluated after epoch"]) == (str(EPOCHS), str(EPOCHS))
        assert row["remarks"] == ""
        data = reported.report["runs"][str(run)]
        assert data["ap"] == close(found["ap"])
        assert data["ap_by_class"] == {one["name"]: close(one["ap"]) for one in found["per_class"]}
        assert data["errors"]["ap50"] == close(found["ap50"])


@pytest.mark.parametrize("label", LABELS)
def test_tables_of_errors_and_calibration_are_means_over_seeds(label: str, reported: Reported) -> None:
    row = reported.row("errors", label)
    for kind in KINDS:
        costs = [reported.report["runs"][str(run)]["errors"]["cost"][kind] for run in reported.runs(label)]
        assert row[kind] == close(100 * statistics.fmean(costs))
    found = [len(records(run)) for run in reported.runs(label)]
    # Those on crowds do not count.
    assert 0.9 * sum(found) <= reported.row("calibration", label)["detections"] <= sum(found)


def test_the_summary_ranks_only_what_can_be_told_apart(reported: Reported) -> None:
    rows = {row["difference"]: row for row in reported.table("differences")}
    for head in ("DETR", "SMCA-DETR"):
        row = next(row for name, row in rows.items() if name.startswith(f"{head}: "))
        line = next(line for line in reported.report["summary"] if line.startswith(f"{head}: "))
        if row["AP is"] == "not distinguishable":
            assert "not distinguishable" in line
            # An interval without 0 in it is distinct from the verdict on all pairs together.
            why = "by itself, but one of 4 pairs" if row["AP low"] > 0 else "within what other images"
            assert why in line
            assert "1.\N{EN DASH}2." in line
        else:
            assert " is above " in line
            assert "1. " in line
            assert "2. " in line


@pytest.mark.parametrize("what", ["ap", "loss", "class", "l1", "giou"])
def test_learning_curves_end_where_the_logs_do(what: str, reported: Reported) -> None:
    drawn = {name: alt for section in reported.report["sections"] for name, alt in section["figures"].items()}
    for number, head in enumerate(("DETR", "SMCA-DETR"), start=1):
        alt = drawn[f"curves-{what}-{number}"]
        assert alt.startswith(f"{head}, ")
        for label in LABELS:
            if not label.startswith(f"{head}, "):
                continue
            if what == "ap":
                ends = [100 * read_jsonl(run / "evaluations.jsonl")[-1]["ap"] for run in reported.runs(label)]
            else:
                rows = [read_jsonl(run / "metrics.jsonl")[-1] for run in reported.runs(label)]
                ends = [row["loss"] if what == "loss" else row["losses"][what] for row in rows]
            assert f"{label.split(', ')[1]} {statistics.fmean(ends):.3g}" in alt


def headline_on(root: Path, names: list[str], heads: tuple[str, ...] = ("detr", "smca")) -> Section:
    """The headline of one run each of what was published, on a data set with these classes."""
    world = make_data(root / "data", count=6, names=names, masks="mask_rcnn" in heads)
    for head in heads:
        for backbone in ("resnet50", "container_light"):
            make_run(root / "runs" / f"{head}-{backbone}", experiment_of(root / "data", head, backbone), world, 1.0)
    return results.headline(analyse(sorted((root / "runs").iterdir()), count=5), {})


def results_on(root: Path, names: list[str]) -> list[dict[str, Any]]:
    """Its table."""
    return headline_on(root, names).tables[0].as_data()


def test_published_metrics_of_masks_stand_beside_those_of_boxes(tmp_path: Path) -> None:
    section = headline_on(tmp_path, [category.name for category in COCO], ("mask_rcnn", "retinanet", "detr"))
    rows = section.tables[0].as_data()
    found = {(row["head"], row["backbone"]): (row["published AP"], row["published mask AP"]) for row in rows}
    assert found == {
        ("RetinaNet", "resnet50"): (36.5, None),
        ("RetinaNet", "container_light"): (43.8, None),
        ("Mask R-CNN", "resnet50"): (38.2, 34.7),
        ("Mask R-CNN", "container_light"): (45.1, 41.3),
        ("DETR", "resnet50"): (34.9, None),
        ("DETR", "container_light"): (38.9, None),
    }
    assert {row["head"] for row in rows if row["mask AP"] is not None} == {"Mask R-CNN"}
    (line,) = [line for line in section.text if line.startswith("Published metrics are of COCO val2017")]
    assert "after 50 epochs (DETR) and 12 epochs (Mask R-CNN and RetinaNet), by their authors" in line


@pytest.mark.parametrize(("head", "epochs"), [("smca", 50), ("mask_rcnn", 12)])
def test_the_schedule_of_what_was_published_is_named_once_where_it_is_the_same(
    head: str, epochs: int, tmp_path: Path
) -> None:
    text = headline_on(tmp_path, [category.name for category in COCO], (head,)).text
    assert text[-1].startswith(f"Published metrics are of COCO val2017, after {epochs} epochs, by their authors")


def test_published_metrics_have_columns_of_their_own(tmp_path: Path) -> None:
    rows = results_on(tmp_path, [category.name for category in COCO])
    assert not any("mask" in key for row in rows for key in row)
    assert {(row["head"], row["backbone"]): row["published AP"] for row in rows} == {
        ("DETR", "resnet50"): 34.9,
        ("DETR", "container_light"): 38.9,
        ("SMCA-DETR", "resnet50"): 41.0,
        ("SMCA-DETR", "container_light"): 44.2,
    }
    for row in rows:
        assert row["AP"] != row["published AP"]
        assert "Gao et al. 2021" in row["source"] or "Conditional DETR" in row["source"]


def test_nothing_was_published_on_other_data(tmp_path: Path) -> None:
    rows = results_on(tmp_path, ["cat", "dog"])
    assert not any("published" in key for row in rows for key in row)


def test_csv_and_json_hold_the_same(reported: Reported) -> None:
    for section in reported.report["sections"]:
        for name, rows in section["tables"].items():
            with (reported.home / "report" / "tables" / f"{name}.csv").open(newline="") as file:
                read = list(csv.DictReader(file))
            assert len(read) == len(rows)
            for one, other in zip(read, rows, strict=True):
                assert {key: "" if value is None else str(value) for key, value in other.items()} == dict(one)
