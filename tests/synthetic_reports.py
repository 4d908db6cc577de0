"""Reports of synthetic runs: an ordinary one, and one in which everything that can be awkward is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs

from detr_container.base.files import write_json
from detr_container.compare.analysis import Analysis, analyse
from detr_container.compare.detectors import Detectors
from detr_container.compare.document import Document
from detr_container.compare.options import ReportOptions
from detr_container.compare.page import write
from detr_container.compare.report import commands_of, write_report
from detr_container.datasets.annotations import Category
from detr_container.measure.costs import Costs, Gflops, Parameters

ATTACK = "<script>alert(1)</script>"
BACKBONES = (
    "resnet50",
    f"{ATTACK} & 'quoted' \"twice\" | a_backbone_of_a_name_without_any_space_at_all_weights_imagenet22k_window7_384",
    'x" onload="alert(1)" y=',
    "\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED} \N{GRINNING FACE} {{ 7 * 7 }} $x^2$ </title></svg>",
)
CLASSES = (
    ATTACK,
    "<img src=http://192.0.2.1/x onerror=alert(1)>",
    'say "cheese"',
    "\N{SLICE OF PIZZA}",
    "]]>",
    "$\\frac{1}",
)


def ordinary(folder: Path, seeds: int, arms: Sequence[tuple[str, str, float]] = synthetic_runs.ARMS) -> Path:
    """Two heads on two backbones; returns the report's page."""
    synthetic_runs.comparison(folder, seeds, arms)
    return write_report(ReportOptions((str(folder / "runs"),), output=folder / "report", resamples=50))


def awkward(folder: Path) -> Path:
    """Two heads on four backbones with names that try to break the page; returns the report's page."""
    return write(awkward_document(folder), folder / "report")


def awkward_document(folder: Path) -> Document:
    """80 classes, most without an object, no small objects, a run that found nothing, and one that is unfinished."""
    world = synthetic_runs.make_data(folder / "data", count=12, classes=80)
    _spoil(folder / "data" / "annotations" / "instances_val2017.json")
    runs = []
    for number in range(2 * len(BACKBONES)):
        head, backbone = ("detr", "smca")[number // len(BACKBONES)], number % len(BACKBONES)
        # Settings of no effect on what is shown, so that they are arms of their own.
        for seed in range(2 if backbone < 2 else 1):
            experiment = synthetic_runs.experiment_of(folder / "data", head, "resnet50", seed, clip=(1 + backbone) / 10)
            skill = -9.0 if number == 3 else 0.4 * backbone + 0.2 * number
            place = folder / "runs" / f"{head}-{backbone}-{seed}"
            epochs = 1 if number == 6 else synthetic_runs.EPOCHS
            runs.append(synthetic_runs.make_run(place, experiment, world, skill, epochs, draw=10 * number + seed))
    synthetic_runs.rewrite(runs[-1], "[]")
    analysis = _renamed(analyse(runs, count=20))
    labels = [arm.label for arm in analysis.arms]
    known = {
        label: Costs(
            Parameters(40_000_000 + number, 30_000_000, 10_000_000, 39_000_000),
            Gflops(80.0 + 9 * number, 50.0, 30.0 + number),
            strides=(32,),
        )
        for number, label in enumerate(labels[:-1])
    }
    options = ReportOptions(
        (str(folder / "runs"),), output=folder / "report", title=f"{ATTACK} & friends " + 9 * "title "
    )
    trouble = [f"{labels[-1]}: {ATTACK} " + 60 * "a/very/long/path", 40 * "a warning that does not end, "]
    with pytest.MonkeyPatch.context() as patch:
        # As if something had been published on these data, which takes columns more.
        names = [Category(number, name) for number, name in enumerate(analysis.ground.names)]
        patch.setattr("detr_container.compare.published.COCO", names)
        return Detectors().document(analysis, known, _latencies(labels), options, commands_of(options), trouble)


def _spoil(path: Path) -> None:
    """Awkward names for classes, and no small objects."""
    content: dict[str, Any] = json.loads(path.read_text())
    for category, name in zip(content["categories"], CLASSES, strict=False):
        category["name"] = name
    content["annotations"] = [one for one in content["annotations"] if one["area"] >= 32**2]
    write_json(path, content)


def _renamed(analysis: Analysis) -> Analysis:
    """The arms under the awkward names."""
    arms = []
    for number, arm in enumerate(analysis.arms):
        label = f"{arm.head}, {BACKBONES[number % len(BACKBONES)]}"
        arms.append(replace(arm, label=label))
    return replace(analysis, arms=tuple(arms))


def _latencies(labels: list[str]) -> dict[str, Any]:
    """As `benchmark --compare` measures them; one model failed."""
    found: dict[str, Any] = {}
    for number, label in enumerate(labels):
        total: dict[str, Any] = {"value": 0.05 + 0.01 * number}
        if number:
            total["ratio"] = {"median": 1 + 0.2 * number, "least": 1.0, "most": 2.0}
        measured = {"forward/640x480/1/total": total, "forward/640x480/1/backbone": {"value": 0.02}}
        found[label] = {"device": f"a processor {ATTACK}", "figures": measured}
    found[labels[-1]] = {"device": f"a processor {ATTACK}", "figures": {}, "failure": f"out of memory {ATTACK}"}
    return found
