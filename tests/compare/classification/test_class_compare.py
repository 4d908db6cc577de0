"""`compare --task classification`: what is planned and refused, and a small comparison trained to its report."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from runs import assert_same_run, one_thread, start, train_in, wait_for

from detr_container.base.files import read_jsonl
from detr_container.commands.cli import main
from detr_container.compare.classification.grid import BASE, check_arm, runs_of
from detr_container.compare.reading import settings_of
from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.experiments import named
from detr_container.datasets.labelled import LabelledBatch
from detr_container.datasets.single_shapes import make_single_shapes
from detr_container.engine.trials import trials_of
from detr_container.jobs.status import status_of

BACKBONES = ("container_light_tiny", "resnet18", "mh_mlp_tiny")
SIDE = 32


def settings_on(root: Path, *more: str) -> list[str]:
    """Two epochs of three steps."""
    usual = [f"data.root={root}", "data.make-shapes=24 20 40", f"data.size={SIDE}", "data.workers=0", "device=cpu"]
    return [
        *usual,
        "train.epochs=2",
        "train.batch=8",
        "train.micro-batch=4",
        "train.log-every=1",
        "train.eval-every=1",
        *more,
    ]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_single_shapes(folder, 24, 20, 40)
    return folder


def grid(**changed: Any) -> list[ClassificationExperiment]:
    usual: dict[str, Any] = {"backbones": BACKBONES, "seeds": (0, 3), "base": "classify_demo"}
    return [classification(run.experiment) for run in runs_of(Path("runs/x"), **{**usual, **changed})]


def test_every_backbone_has_a_run_with_each_seed_and_nothing_else_differs() -> None:
    runs = runs_of(Path("runs/x"), ("resnet18", "timm/vit_tiny_patch16_224"), (0, 3))
    assert [run.folder.name for run in runs] == [
        f"{name}-seed{seed}" for seed in (0, 3) for name in ("resnet18", "timm_vit_tiny_patch16_224")
    ]
    found = [settings_of(experiment) for experiment in grid()]
    for one in found:
        del one["backbone.name"]
    assert len({json.dumps(one) for one in found}) == 1
    base = classification(named(BASE).experiment)
    (plain,) = grid(backbones=("container_light",), seeds=(0,), base="")
    assert plain == replace(base, train=replace(base.train, keep_predictions="all"))


def test_what_a_resnet_cannot_have_is_not_in_its_settings() -> None:
    found = grid(backbones=("container_light", "resnet50"), seeds=(0,), base="")
    assert [one.backbone.drop_path for one in found] == [0.1, 0.0]
    (asked,) = grid(backbones=("container_light",), seeds=(0,), base="", settings=("backbone.drop_path=0.0",))
    assert asked.backbone.drop_path == 0.0


def test_weights_are_named_with_the_backbone() -> None:
    found = grid(backbones=("resnet18=r18.pth", "container_light_tiny"), seeds=(0,))
    assert [one.backbone.weights for one in found] == ["r18.pth", "none"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbones": ()}, "at least one each of --backbones and --seeds"),
        ({"seeds": (1, 1)}, r"--seeds 1 1: name each once"),
        ({"base": "debug"}, r"debug is an experiment of detection: this is for classification alone"),
        ({"settings": ("seed=3",)}, r"--setting seed: the comparison sets it; use --backbones or --seeds"),
        ({"settings": ("head.kind=detr",)}, r"there is no setting 'head.kind'"),
        ({"settings": ("data.size=0",)}, r"data.size=0"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changed)


@pytest.mark.parametrize("backbone", ["container_pam_tiny", "mh_mlp_tiny"])
def test_a_backbone_of_one_size_is_checked_against_the_settings(backbone: str) -> None:
    (experiment,) = grid(backbones=(backbone,), seeds=(0,), settings=("data.size=32",))
    check_arm(experiment)
    with pytest.raises(ValueError, match=r"built for images of 32 x 32 pixels, not of 40 x 40: "):
        check_arm(replace(experiment, data=replace(experiment.data, eval_size=40)))
    (light,) = grid(backbones=("container_light_tiny",), seeds=(0,), settings=("data.size=32",))
    check_arm(replace(light, data=replace(light.data, eval_size=64)))


def test_weights_that_no_program_can_fetch_are_refused() -> None:
    (experiment,) = grid(backbones=("container_light",), seeds=(0,))
    with pytest.raises(ValueError, match=r"--backbones container_light=container_light.pth"):
        check_arm(replace(experiment, backbone=replace(experiment.backbone, weights="imagenet")))


def test_the_same_seed_shows_the_same_images_to_every_backbone(shapes: Path) -> None:
    """Order, crops, erased blocks and what is mixed, as the tasks of three backbones load them."""
    augmented = ("data.erasing=0.5", "data.auto-augment=rand-m9-mstd0.5-inc1", "data.mixup=0.8", "data.repeats=3")
    settings = settings_on(shapes, *augmented)
    seen: dict[tuple[int, str], list[LabelledBatch]] = {}
    for experiment in grid(settings=settings):
        task, train = trials_of(experiment).opened(), experiment.train
        sampler = task.sampler(experiment.seed, batch=train.batch, micro_batch=train.micro_batch, total_steps=4)
        batches = task.batches(task.build(weights=False), sampler, False, lambda short: False)
        seen[experiment.seed, experiment.backbone.name] = list(islice(batches, 8))
    for seed in (0, 3):
        first, *others = (seen[seed, name] for name in BACKBONES)
        assert len(first) == 8
        for other in others:
            for one, same in zip(first, other, strict=True):
                assert one.image_ids == same.image_ids
                for name in ("images", "labels", "erased", "share", "box"):
                    assert torch.equal(getattr(one, name), getattr(same, name))
    ids = [[batch.image_ids for batch in seen[seed, BACKBONES[0]]] for seed in (0, 3)]
    assert ids[0] != ids[1]


def arguments(root: Path, home: Path, *more: str) -> list[str]:
    usual = ["compare", "--task", "classification", "--base", "classify_demo", "--runs", str(home), "--name", "x"]
    return [*usual, "--no-measure", *more, "--setting", *settings_on(root)]


def test_heads_are_refused_with_a_word(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shapes, tmp_path, "--heads", "detr", "--backbones", "resnet18")) == 2
    assert "--heads detr: a classifier has no such head" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_comparison_is_planned_trained_reported_and_not_repeated(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two backbones with two seeds, and one that cannot be."""
    given = arguments(
        shapes, tmp_path, "--backbones", "container_light_tiny", "resnet18", "resnet19", "--seeds", "0", "1"
    )
    with one_thread():
        assert main(given) == 1
    out = capsys.readouterr().out
    assert out.count(": to train, about ") == 4
    assert out.count("cannot be trained: there is no backbone 'resnet19'") == 2
    # Two epochs of 24 images.
    assert "GFLOPs on 32 x 32 pixels; 48 views a seed, about " in out
    home = tmp_path / "x"
    assert out.splitlines()[-1] == (home / "report" / "index.html").resolve().as_uri()
    report = json.loads((home / "report" / "report.json").read_text())
    assert any(line.startswith("resnet19 was left out: there is no backbone") for line in report["warnings"])
    tables = {name: rows for section in report["sections"] for name, rows in section["tables"].items()}
    for name in ("container_light_tiny", "resnet18"):
        runs = [home / f"{name}-seed{seed}" for seed in (0, 1)]
        last = [read_jsonl(run / "evaluations.jsonl")[-1] for run in runs]
        row = next(row for row in tables["results"] if row["backbone"] == name)
        assert row["top-1"] == pytest.approx(50 * (last[0]["top1"] + last[1]["top1"]))
        assert row["top-5"] == pytest.approx(50 * (last[0]["top5"] + last[1]["top5"]))
        assert row["seeds"] == "2"
        assert len(list((runs[0] / "detections").iterdir())) == 2
    assert "fair" not in tables, tables["fair"]
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/checkpoints/*")}
    with one_thread():
        assert main(given) == 1
    assert capsys.readouterr().out.count(": finished, top-1 ") == 4
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/checkpoints/*")} == before
    found = status_of(home / "resnet18-seed0")
    assert (found.state, found.score) == ("finished", f"top-1 {100 * last[0]['top1']:.1f}")


def test_interrupted_it_resumes_where_it_was(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the second run, then the same command: the runs are those that nobody interrupted."""
    names, longer = ("container_light_tiny", "mh_dw_tiny"), ("train.epochs=8", "train.eval-every=4")
    given = [*arguments(shapes, tmp_path / "runs", "--backbones", *names, "--seeds", "0"), *longer]
    process, second = start(given, tmp_path), tmp_path / "runs" / "x" / "mh_dw_tiny-seed0"
    wait_for(lambda: status_of(second).step > 3, process)
    os.kill(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The same command resumes from here" in log
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]
    stopped = status_of(second)
    assert (stopped.state, 3 < stopped.step < 24) == ("stopped", True)
    assert not (second.parent / "report").exists()
    # The runs are processes, and with two threads a sum may be rounded otherwise.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with one_thread():
        assert main(given) == 0
    assert (second.parent / "report" / "index.html").is_file()
    for experiment in grid(backbones=names, seeds=(0,), settings=settings_on(shapes, *longer)):
        alone = tmp_path / experiment.backbone.name
        assert train_in(alone, experiment) == 0
        assert_same_run(second.parent / f"{alone.name}-seed0", alone)
