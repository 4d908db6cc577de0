"""Compared backbones that come from runs of ours: what of these differs is named, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_classifiers
from synthetic_runs import experiment_of, make_data, make_run, provenance_line

from detr_container.base.files import write_jsonl
from detr_container.compare import ranking
from detr_container.compare.analysis import analyse
from detr_container.compare.classification.analysis import analyse as analyse_classifiers
from detr_container.compare.fairness import Difference
from detr_container.config.classification import classification
from detr_container.config.experiments import named
from detr_container.config.settings import flatten
from detr_container.jobs.sweep import with_settings

BACKBONES = ("resnet18", "container_light_tiny")
Runs = Callable[..., Path]


def record(backbone: str, file: str = "", **changed: Any) -> dict[str, Any]:
    """What a detector notes of a classifier that its backbone comes from; changed: settings of that classifier."""
    settings = {name: str(value) for name, value in changed.items()}
    experiment = with_settings(
        named("container_light_in1k").experiment, [("backbone.name", backbone), *settings.items()]
    )
    epochs = experiment.train.epochs
    return {
        "kind": "run",
        "path": f"runs/{backbone}",
        "sha256": file or f"{backbone:0<64}",
        "task": "classification",
        "experiment": "container_light_in1k",
        "backbone": backbone,
        "epoch": float(epochs),
        "epochs": epochs,
        "settings": {name: value for name, value in flatten(experiment).items() if name != "backbone.name"},
        "folder": "data/imagenet",
        "data": {"train": {"annotations": "data/imagenet/train", "sha256": 64 * "a"}},
    }


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Makes a detector on each backbone; records: what they note of its weights (None: random ones)."""
    world = make_data(tmp_path / "data", count=4)

    def make(*records: dict[str, Any] | None) -> Path:
        for number, (backbone, found) in enumerate(zip(BACKBONES, records, strict=True)):
            weights = found["path"] if found else "none"
            experiment = with_settings(
                experiment_of(tmp_path / "data", "smca", backbone), [("backbone.weights", weights)]
            )
            folder = make_run(tmp_path / "runs" / backbone, experiment, world, 0.5, draw=number)
            more = {"pretraining": {"backbone.weights": found}} if found else {}
            write_jsonl(folder / "provenance.jsonl", [provenance_line(experiment, **more)])
        return tmp_path / "runs"

    return make


def differences(home: Path) -> tuple[Difference, ...]:
    found = analyse(sorted(home.iterdir()), count=2)
    assert ranking.warnings(found) == [str(one) for one in found.differences]
    assert {one.topic for one in found.differences} <= {"pretraining"}
    return found.differences


def test_the_same_recipe_on_two_backbones_is_the_same_pretraining(runs: Runs) -> None:
    assert differences(runs(*map(record, BACKBONES))) == ()


@pytest.mark.parametrize(
    ("changed", "name", "values"),
    [
        (
            {"data.fraction": 0.1},
            "data",
            ("imagenet (SHA-256 aaaaaaaaaaaa)", "10 % of imagenet (SHA-256 aaaaaaaaaaaa)"),
        ),
        ({"train.epochs": 100}, "epochs", ("300", "100")),
        (
            {"train.lr": 1e-3, "data.mixup": 0.0},
            "recipe",
            ("train.lr=0.0005 data.mixup=0.8", "train.lr=0.001 data.mixup=0.0"),
        ),
    ],
)
def test_what_differs_is_named(runs: Runs, changed: dict[str, Any], name: str, values: tuple[str, str]) -> None:
    (one,) = differences(runs(record(BACKBONES[0]), record(BACKBONES[1], **changed)))
    assert (one.topic, one.name, one.expected) == ("pretraining", name, False)
    assert [one.values[f"SMCA-DETR, {backbone}"] for backbone in BACKBONES] == list(values)


def test_other_data_and_a_schedule_that_was_left_early_are_named(runs: Runs) -> None:
    other = record(BACKBONES[1]) | {"epoch": 12.0}
    other["data"] = {"train": {"annotations": "data/cells/train", "sha256": 64 * "b"}}
    other["folder"] = "data/cells"
    data, epochs = differences(runs(record(BACKBONES[0]), other))
    assert data.values["SMCA-DETR, container_light_tiny"] == "cells (SHA-256 bbbbbbbbbbbb)"
    assert epochs.values["SMCA-DETR, container_light_tiny"] == "12 of 300"


def test_a_folder_that_moved_holds_the_same_data(runs: Runs) -> None:
    assert differences(runs(record(BACKBONES[0]), record(BACKBONES[1]) | {"folder": "scratch/in1k"})) == ()


def test_many_settings_are_a_line(runs: Runs) -> None:
    changed = {f"data.{name}": 0 for name in ("flip", "erasing", "mixup", "cutmix")}
    changed |= {"train.lr": 1, "train.weight_decay": 0, "loss.smoothing": 0, "train.min_lr": 0}
    (one,) = differences(runs(record(BACKBONES[0]), record(BACKBONES[1], **changed)))
    assert all(value.endswith(" and 2 more") for value in one.values.values())


def test_another_task_is_named(runs: Runs) -> None:
    other = record(BACKBONES[1]) | {"task": "self_supervised"}
    other["settings"] = {"train.epochs": 300, "views.local": 8}
    (one,) = differences(runs(record(BACKBONES[0]), other))
    assert one.name == "task"
    assert set(one.values.values()) == {"classification", "self_supervised"}


def test_another_file_of_the_same_backbone_is_named_where_nothing_else_differs(runs: Runs) -> None:
    same = record("container_light_tiny") | {"path": "runs/one"}
    other = record("container_light_tiny", file=64 * "c") | {"path": "runs/two"}
    (one,) = differences(runs(same, other))
    assert (one.name, sorted(one.values.values())[0]) == ("file alone", "SHA-256 cccccccccccc")


def test_beside_random_weights_the_setting_is_named(runs: Runs) -> None:
    (one,) = differences(runs(record(BACKBONES[0]), None))
    assert (one.topic, one.name) == ("pretraining", "backbone.weights")
    assert set(one.values.values()) == {"runs/resnet18", "none"}


def test_of_compared_classifiers_it_is_named_as_well(tmp_path: Path) -> None:
    world = synthetic_classifiers.make_data(tmp_path / "data", ("cat", "dog"), images=6)
    for number, (backbone, epochs) in enumerate(zip(BACKBONES, (300, 100), strict=True)):
        found = record(backbone, **{"train.epochs": epochs})
        base = synthetic_classifiers.experiment_of(world, backbone)
        experiment = classification(with_settings(base, [("backbone.weights", found["path"])]))
        run = synthetic_classifiers.make_run(tmp_path / "runs" / backbone, experiment, world, 1.0, draw=number)
        noted = {"pretraining": {"backbone.weights": found}}
        write_jsonl(run / "provenance.jsonl", [synthetic_classifiers.provenance_line(world, experiment, **noted)])
    (one,) = analyse_classifiers(sorted((tmp_path / "runs").iterdir()), None, count=2).differences
    assert (one.topic, one.name, sorted(one.values.values())) == ("pretraining", "epochs", ["100", "300"])
