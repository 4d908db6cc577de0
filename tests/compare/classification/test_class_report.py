"""Every number of a report of classifiers, computed again in the most literal way, with several seeds and with one."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_intervals import interval_of, real_of
from synthetic_classifiers import BACKBONES, CLASSES, EPOCHS, comparison, last_predictions
from synthetic_runs import read_json
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.base.files import read_jsonl
from detr_container.compare.options import ReportOptions
from detr_container.compare.report import write_report
from detr_container.config.classification import classification
from detr_container.config.settings import load
from detr_container.engine.classifiers import build_classifier

RESAMPLES = 8
LABELS = [name for name, _ in BACKBONES]


@dataclass(frozen=True)
class Reported:
    """Runs and their report."""

    home: Path
    seeds: int
    report: dict[str, Any]

    def table(self, name: str) -> list[dict[str, Any]]:
        return next(section["tables"][name] for section in self.report["sections"] if name in section["tables"])

    def runs(self, label: str) -> list[Path]:
        return [self.home / "runs" / f"{label}-seed{seed}" for seed in range(self.seeds)]

    def row(self, name: str, label: str) -> dict[str, Any]:
        return next(row for row in self.table(name) if row["backbone"] == label)


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    home = tmp_path_factory.mktemp("classified")
    comparison(home, request.param)
    page = write_report(ReportOptions((str(home / "runs"),), output=home / "report", resamples=RESAMPLES))
    return Reported(home, request.param, read_json(page.parent / "report.json"))


def close(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def check_range(row: dict[str, Any], name: str, interval: dict[str, float]) -> None:
    for part, key in (("", "value"), (" low", "low"), (" high", "high")):
        assert row[name + part] == close(interval[key])


def check_spread(row: dict[str, Any], name: str, values: list[float]) -> None:
    assert row[name] == close(statistics.fmean(values))
    assert row[f"{name} sd"] == (close(statistics.stdev(values)) if len(values) > 1 else None)
    assert row[f"{name} seeds"] == len(values)


def images_of(run: Path) -> list[dict[str, Any]]:
    """Of each image its label, and what was guessed, surest first."""
    found = last_predictions(run)
    return [
        {"label": int(label), "guess": guess.tolist(), "sure": float(chances[0]), "true": float(true)}
        for label, guess, chances, true in zip(
            found.labels, found.classes, found.probabilities, found.true_probability, strict=True
        )
    ]


def top(images: list[dict[str, Any]], k: int, label: int | None = None) -> float:
    """The share of images, or of those of one class, whose label is among the k surest guesses."""
    asked = [image for image in images if label is None or image["label"] == label]
    hits = sum(image["label"] in image["guess"][:k] for image in asked)
    return hits / len(asked) if asked else math.nan


def metrics_of(reported: Reported, label: str, k: int, of: int | None = None) -> list[np.ndarray]:
    """Of each seed top-k of all images, then of each resample, drawn image by image."""
    found = []
    for run in reported.runs(label):
        images, rng = images_of(run), np.random.default_rng(0)
        drawn = [[images[place] for place in rng.integers(0, len(images), len(images))] for _ in range(RESAMPLES)]
        found.append(np.array([top(each, k, of) for each in (images, *drawn)]))
    return found


def count_of(reported: Reported) -> int:
    return len(images_of(reported.runs(LABELS[0])[0]))


@pytest.mark.parametrize("label", LABELS)
def test_the_headline(label: str, reported: Reported) -> None:
    row = reported.row("results", label)
    for title, k in (("top-1", 1), ("top-5", 5)):
        check_range(row, title, interval_of(count_of(reported), metrics_of(reported, label, k), share=True))
    last = [100 * top(images_of(run), 1) for run in reported.runs(label)]
    assert row["spread of top-1"] == (close(statistics.stdev(last)) if reported.seeds > 1 else None)
    assert row["seeds"] == str(reported.seeds)
    best = [
        100 * max(float(last_predictions(run, epoch).top(1).mean()) for epoch in range(1, EPOCHS + 1))
        for run in reported.runs(label)
    ]
    check_spread(row, "best-epoch top-1", best)


@pytest.mark.parametrize("label", LABELS)
def test_what_it_cost(label: str, reported: Reported) -> None:
    row, logs = reported.row("results", label), [read_jsonl(run / "metrics.jsonl") for run in reported.runs(label)]
    experiment = classification(load(reported.runs(label)[0] / "config.json"))
    model = build_classifier(experiment.backbone, len(CLASSES), experiment.data.size, weights=False).eval()
    assert row["parameters, M"] == close(sum(p.numel() for p in model.parameters()) / 1e6)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 48, 48))
    assert row["GMACs"] == close(counter.get_total_flops() / 2e9)
    assert row["images/s"] == close(
        statistics.fmean(statistics.median(r["images_per_second"] for r in log) for log in logs)
    )
    hours = [sum(3 * experiment.train.batch / row["images_per_second"] for row in log) / 3600 for log in logs]
    assert row["device-hours"] == close(statistics.fmean(hours))
    assert row["memory, GiB"] == close(max(r["memory_gib"] for log in logs for r in log))
    assert "published top-1" not in row


def pairs(reported: Reported) -> list[tuple[str, str]]:
    """The one of the higher top-1 first."""
    means = {label: np.mean([top(images_of(run), 1) for run in reported.runs(label)]) for label in LABELS}
    return [(a, b) if means[a] >= means[b] else (b, a) for a, b in itertools.combinations(LABELS, 2)]


def test_differences_and_their_intervals(reported: Reported) -> None:
    rows, p_values = {row["difference"]: row for row in reported.table("differences")}, {}
    assert len(rows) == 3
    for a, b in pairs(reported):
        name = f"{a} \N{MINUS SIGN} {b}"
        for title, k in (("top-1", 1), ("top-5", 5)):
            sides = metrics_of(reported, a, k), metrics_of(reported, b, k)
            interval = interval_of(count_of(reported), *sides, share=True)
            check_range(rows[name], title, interval)
            if k == 1:
                p_values[name] = interval["p"]
                assert rows[name]["p"] == close(interval["p"])
    real = real_of(p_values)
    for name, row in rows.items():
        assert (row["top-1 is"] != "not distinguishable") == (name in real)


def test_images_that_only_one_of_two_gets_right(reported: Reported) -> None:
    rows = {row["difference"]: row for row in reported.table("discordant")}
    for a, b in pairs(reported):
        row = rows[f"{a} \N{MINUS SIGN} {b}"]
        counts: dict[str, list[float]] = {name: [] for name in ("both", "only the first", "only the second", "neither")}
        for one, other in zip(reported.runs(a), reported.runs(b), strict=True):
            right = [
                tuple(image["guess"][0] == image["label"] for image in both)
                for both in zip(images_of(one), images_of(other), strict=True)
            ]
            for name, what in zip(counts, ((True, True), (True, False), (False, True), (False, False)), strict=True):
                counts[name].append(right.count(what))
        for name, values in counts.items():
            check_spread(row, f"{name} right", values)
        assert row["pairs of runs"] == reported.seeds
        # Each side's hits are those of both and its own, so that the difference is that of the discordant ones.
        apart = (row["only the first right"] - row["only the second right"]) / count_of(reported)
        difference = next(r for r in reported.table("differences") if r["difference"] == row["difference"])
        assert difference["top-1"] == close(100 * apart)


def test_classes_and_which_of_them_differ(reported: Reported) -> None:
    images = images_of(reported.runs(LABELS[0])[0])
    for k, name in enumerate(CLASSES):
        row = next(row for row in reported.table("class-accuracy") if row["class"] == name)
        assert row["images"] == sum(image["label"] == k for image in images)
        for label in LABELS:
            check_range(row, label, interval_of(row["images"], metrics_of(reported, label, 1, k), share=True))
    for number, (a, b) in enumerate(pairs(reported), start=1):
        rows = {row["class"]: row for row in reported.table(f"classes-{number}")}
        p_values = {}
        for k, name in enumerate(CLASSES):
            sides = metrics_of(reported, a, 1, k), metrics_of(reported, b, 1, k)
            interval = interval_of(rows[name]["images"], *sides, share=True)
            check_range(rows[name], "difference", interval)
            p_values[name] = interval["p"]
        assert {name for name, row in rows.items() if row["real among all classes"]} == real_of(p_values)


def test_confusions_are_shares_of_the_true_class(reported: Reported) -> None:
    rows = reported.table("confusions")
    assert len(rows) == 12
    counts = []
    for row in rows:
        true, taken = CLASSES.index(row["true class"]), CLASSES.index(row["taken for"])
        assert true != taken
        total = 0.0
        for label in LABELS:
            hits = [
                sum(image["label"] == true and image["guess"][0] == taken for image in images_of(run))
                for run in reported.runs(label)
            ]
            assert row[label] == close(100 * statistics.fmean(hits) / row["images"])
            total += statistics.fmean(hits)
        counts.append(total)
    assert counts == [close(count) for count in sorted(counts, reverse=True)]
    wrong = [image for label in LABELS for run in reported.runs(label) for image in images_of(run)]
    every = [(image["label"], image["guess"][0]) for image in wrong if image["label"] != image["guess"][0]]
    assert counts[0] * reported.seeds == close(max(map(every.count, every)))


@pytest.mark.parametrize("label", LABELS)
def test_calibration(label: str, reported: Reported) -> None:
    row, errors, losses = reported.row("calibration", label), [], []
    for run in reported.runs(label):
        images, error = images_of(run), 0.0
        for place in range(10):
            inside = [image for image in images if place / 10 <= image["sure"] < (place + 1) / 10]
            right = sum(image["guess"][0] == image["label"] for image in inside)
            error += abs(sum(image["sure"] for image in inside) - right) / len(images)
        errors.append(error)
        losses.append(statistics.fmean(-math.log(image["true"]) for image in images))
    assert row["calibration error"] == pytest.approx(statistics.fmean(errors), rel=1e-6)
    assert row["log loss"] == pytest.approx(statistics.fmean(losses), rel=1e-6)
    sure = [image["sure"] for run in reported.runs(label) for image in images_of(run)]
    assert row["mean confidence"] == pytest.approx(statistics.fmean(sure), rel=1e-6)


@pytest.mark.parametrize("label", LABELS)
def test_epochs_to_an_accuracy(label: str, reported: Reported) -> None:
    """The default target: what the weakest arm's weakest run ended at, found by walking along the curve."""
    ends = {each: [top(images_of(run), 1) for run in reported.runs(each)] for each in LABELS}
    target = min(min(ends.values(), key=statistics.fmean))
    epochs, first = [], []
    for run in reported.runs(label):
        curve = [(row["epoch"], row["top1"]) for row in read_jsonl(run / "evaluations.jsonl")]
        place = next((n for n, (_, value) in enumerate(curve) if value >= target), None)
        if place is None:
            continue
        after = curve[place]
        before = curve[place - 1] if place else None
        share = (target - before[1]) / (after[1] - before[1]) if before else 1.0
        epochs.append(after[0] - 1 + share if before else after[0])
        first.append(float(after[0]))
    row = reported.row("milestones", label)
    assert row["reached by"] == f"{len(epochs)} of {reported.seeds}"
    check_spread(row, "epochs", epochs)
    check_spread(row, "first evaluation", first)
    # 12 steps of 8 views an epoch, three of each image.
    check_spread(row, "views, thousands", [96 * each / 1000 for each in epochs])
    check_spread(row, "images, thousands", [32 * each / 1000 for each in epochs])
    shown = reported.row("shown", label)
    assert (shown["views an epoch"], shown["different images an epoch"], shown["views of each"]) == (96, 32, 3)
    assert shown["training images"] == sum(20 - 2 * number for number in range(len(CLASSES)))


def test_the_page_says_what_limits_it(reported: Reported) -> None:
    text = " ".join(line for section in reported.report["sections"] for line in section["text"])
    assert "gains most at its end" in text
    assert "interpolated on a straight line" in text
    assert "shows 1 / `data.repeats` of them" in text
    assert not reported.report["warnings"]
    assert len(reported.report["runs"]) == 3 * reported.seeds
    for folder, found in reported.report["runs"].items():
        assert found["top1"] == close(top(images_of(Path(folder)), 1))
