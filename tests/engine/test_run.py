"""A run's folder: what it holds, what may change when it resumes, and what is forgotten when it goes back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import tiny

from detr_container.base.files import JsonLines, read_jsonl
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import to_dict
from detr_container.engine.run import Run

CLASSES = [{"id": 1, "name": "circle"}, {"id": 4, "name": "triangle"}]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.describe(tiny(Path("data")), {"classes.json": CLASSES}, {"step": 0})
    return run


def test_describe_and_read_back(run: Run) -> None:
    assert run.exists
    assert run.experiment() == tiny(Path("data"))
    assert json.loads((run.folder / "classes.json").read_text()) == CLASSES
    difference = json.loads((run.folder / "difference.json").read_text())
    assert difference["data.root"] == {"named": "data/shapes-debug", "here": "data"}
    assert difference["device"] == {"named": "auto", "here": "cpu"}
    run.describe(tiny(Path("data"), train__epochs=7), {}, {"step": 4})
    assert run.experiment().train.epochs == 7
    assert [line["step"] for line in read_jsonl(run.folder / "provenance.jsonl")] == [0, 4]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.exists
    assert (run.metrics(), run.evaluations(), run.checkpoints().paths()) == ([], [], [])
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.json"):
        run.experiment()


def checkpoint(experiment: DetectionExperiment) -> dict[str, Any]:
    """What a checkpoint holds of its run, without the weights."""
    return {"optimizer": {}, "step": 2, "steps_per_epoch": 4, "meters": [], "experiment": to_dict(experiment)}


@pytest.mark.parametrize(
    "changed",
    [
        {"head__queries": 5},
        {"backbone__name": "container_light_small"},
        {"loss__focal_gamma": 1.0},
        {"seed": 1},
        {"train__batch": 8},
        {"train__ema_decay": 0.5},
        {"train__precision": "bf16"},
    ],
)
def test_what_would_make_it_another_run(changed: dict[str, Any], run: Run) -> None:
    name = next(iter(changed)).replace("__", ".")
    with pytest.raises(ValueError, match=rf"another model or loss: {name} was .*, now .*--run NAME"):
        run.check_resumable(tiny(Path("data"), **changed), Path("x.pt"), checkpoint(run.experiment()), 4)


def test_what_may_change(run: Run) -> None:
    before = run.experiment()
    after = tiny(Path("elsewhere"), train__epochs=9, train__lr=1e-3, data__workers=2, train__micro_batch=1)
    assert run.check_resumable(before, Path("x.pt"), checkpoint(before), 4) == {}
    assert run.check_resumable(after, Path("x.pt"), checkpoint(before), 4) == {
        "train.epochs": (2, 9),
        "train.lr": (before.train.lr, 1e-3),
        "data.workers": (0, 2),
        "train.micro_batch": (2, 1),
        "data.root": ("data", "elsewhere"),
    }
    weights = replace(before, backbone=replace(before.backbone, weights="imagenet"))
    changed = run.check_resumable(weights, Path("x.pt"), checkpoint(before), 4)
    assert changed == {"backbone.weights": ("none", "imagenet")}


@pytest.mark.parametrize("missing", ["optimizer", "step", "steps_per_epoch", "meters", "experiment"])
def test_a_file_that_is_no_checkpoint_of_a_run(missing: str, run: Run) -> None:
    state = checkpoint(run.experiment())
    del state[missing]
    with pytest.raises(ValueError, match=r"x\.pt is not a checkpoint of a run.*--init x\.pt"):
        run.check_resumable(run.experiment(), Path("x.pt"), state, 4)


def test_another_training_set(run: Run) -> None:
    with pytest.raises(ValueError, match=r"an epoch had 4 steps, now 5\..*--run NAME"):
        run.check_resumable(run.experiment(), Path("x.pt"), checkpoint(run.experiment()), 5)


def test_rewind_forgets_what_ran_ahead(run: Run) -> None:
    for path in (run.metrics_path, run.evaluations_path):
        with JsonLines(path) as lines:
            for step in (2, 4, 6):
                lines.append({"step": step, "epoch": step // 2})
    run.rewind(4)
    assert [row["step"] for row in run.metrics()] == [2, 4]
    assert [row["step"] for row in run.evaluations()] == [2, 4]
    run.rewind(9)
    assert [row["step"] for row in run.metrics()] == [2, 4]
    run.rewind(0)
    assert run.metrics() == run.evaluations() == []
