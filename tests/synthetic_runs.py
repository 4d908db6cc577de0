"""Run folders without training: what a finished run leaves, with detections of a simulated detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import simulated
from PIL import Image

from detr_container.base.files import sha256, write_json, write_jsonl
from detr_container.config.detection import DetectionExperiment, PyramidConfig, detection
from detr_container.config.experiments import named
from detr_container.config.settings import to_dict
from detr_container.jobs.sweep import with_settings
from detr_container.tasks.detection.coco_results import OLD_NAME, ResultRecord, read_kept, records_of, write_results
from detr_container.tasks.detection.detections import NAME
from detr_container.tasks.detection.scoring import score

EPOCHS = 3


LOSSES = {
    "retinanet": ("class", "box"),
    "mask_rcnn": ("class", "box", "mask", "proposal_class", "proposal_box"),
}
"""The terms that heads log, where they are not those of DETR and SMCA-DETR."""


def make_data(
    root: Path, count: int = 24, classes: int = 3, seed: int = 7, names: Sequence[str] = (), masks: bool = False
) -> simulated.Scene:
    """A data set in COCO's layout with plain images, its training split of one of them; returns what is in it."""
    world = simulated.scene(count, len(names) or classes, seed)
    if masks:
        world = simulated.with_masks(world, seed)
    if names:
        world = replace(world, ground=replace(world.ground, names=tuple(names)))
    content = simulated.annotation_file(world)
    for split, images in (("train", content["images"][:1]), ("val", content["images"])):
        kept = {image["id"] for image in images}
        rows = [row for row in content["annotations"] if row["image_id"] in kept]
        write_json(
            root / "annotations" / f"instances_{split}2017.json", {**content, "images": images, "annotations": rows}
        )
        (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
        for image in images:
            size = (int(simulated.WIDTH), int(simulated.HEIGHT))
            Image.new("RGB", size, (90, 120, 60)).save(root / f"{split}2017" / image["file_name"])
    return world


def experiment_of(root: Path, head: str, backbone: str, seed: int = 0, **train: Any) -> DetectionExperiment:
    """A small experiment on such a data set; train: other settings of its schedule."""
    base = detection(with_settings(named("debug").experiment, [("head.kind", head), ("backbone.name", backbone)]))
    small = PyramidConfig(channels=16, convolutions=1, hidden=32, proposals=20)
    return replace(
        base,
        pyramid=small if base.anchors else base.pyramid,
        data=replace(base.data, root=root, make_shapes=(0, 0, 0)),
        train=replace(base.train, **{"epochs": EPOCHS, "eval_every": 1, **train}),
        seed=seed,
        device="cpu",
    )


def make_run(
    folder: Path,
    experiment: DetectionExperiment,
    world: simulated.Scene,
    skill: float,
    epochs: int = EPOCHS,
    draw: int = 0,
    old: bool = False,
) -> Path:
    """A run that was evaluated after each of so many epochs, a little better each time; draw: of its detections.

    old: its detections are in COCO's result format, as earlier versions kept them. A Mask R-CNN's have masks.
    """
    assert experiment.data.root is not None
    annotations = experiment.data.root / "annotations" / "instances_val2017.json"
    write_json(folder / "config.json", to_dict(experiment))
    evaluations, metrics = [], []
    for epoch in range(1, epochs + 1):
        found = simulated.detect(world, skill - 0.4 * (EPOCHS - epoch), 1000 * draw + epoch, per_image=20)
        if experiment.masks:
            found = found._replace(masks=simulated.outlines(found.boxes, 1000 * draw + epoch))
        results = simulated.detections(found)
        place = folder / "detections" / f"epoch-{epoch:03d}"
        if old:
            write_results(place / OLD_NAME, results.columns())
        else:
            results.write(place / NAME)
        scores = score(annotations, results).to_dict()
        eval_settings = {"eval_batch": experiment.data.eval_batch, "annotations": str(annotations)}
        write_json(place / "scores.json", {**scores, "evaluated_with": eval_settings})
        del scores["per_class"]
        evaluations.append({"step": 10 * epoch, "epoch": epoch, **scores})
        for step in range(10 * epoch - 8, 10 * epoch + 1, 2):
            terms = LOSSES.get(experiment.head.kind, ("class", "l1", "giou"))
            losses = {name: (number + draw) / step for number, name in enumerate(terms, start=1)}
            row = {"step": step, "epoch": step / 10, "loss": (9 + draw) / step, "losses": losses, "lr": 1e-4}
            metrics.append({**row, "grad_norm": 1.0, "images_per_second": 20.0 + draw, "memory_gib": 0.5 + 0.1 * draw})
    write_jsonl(folder / "evaluations.jsonl", evaluations)
    write_jsonl(folder / "metrics.jsonl", metrics)
    write_jsonl(folder / "provenance.jsonl", [provenance_line(experiment)])
    return folder


def provenance_line(experiment: DetectionExperiment, **changed: Any) -> dict[str, Any]:
    """What a start of a run notes."""
    assert experiment.data.root is not None
    paths = {split: experiment.data.root / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")}
    data = {split: {"annotations": str(path), "sha256": sha256(path)} for split, path in paths.items()}
    return provenance_of("debug", data, **changed)


def provenance_of(experiment: str, data: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The same of a named experiment; data: by split, as a run notes its version."""
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "command": f"detr-container train {experiment}",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "packages": {"torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31"},
        "cpu": "a processor",
        "gpus": [],
        "world_size": 1,
        "step": 0,
        "data": data,
        **changed,
    }


def read_json(path: Path) -> Any:
    """A file's content."""
    return json.loads(path.read_text())


def records(folder: Path, epoch: int = EPOCHS) -> list[ResultRecord]:
    """The detections of an epoch in COCO's result format."""
    return list(records_of(read_kept(folder / "detections" / f"epoch-{epoch:03d}")))


def rewrite(folder: Path, text: str) -> Path:
    """Put a file of an earlier version in the place of the last epoch's detections."""
    place = folder / "detections" / f"epoch-{EPOCHS:03d}"
    (place / NAME).unlink(missing_ok=True)
    (place / OLD_NAME).write_text(text)
    return place / OLD_NAME


ARMS = (
    ("detr", "resnet18", -0.6),
    ("detr", "container_light_tiny", -0.2),
    ("smca", "resnet18", 0.6),
    ("smca", "container_light_tiny", 0.7),
)
"""Heads on backbones, and how good they are."""
WITH_MASKS = (
    ("detr", "resnet18", -0.6),
    ("mask_rcnn", "resnet18", 0.1),
    ("mask_rcnn", "container_light_tiny", 1.2),
)


def comparison(home: Path, seeds: int = 2, arms: Sequence[tuple[str, str, float]] = ARMS) -> list[Path]:
    """Heads on two backbones with some seeds each, on a synthetic data set in `home`/data."""
    world = make_data(home / "data", masks=any(head == "mask_rcnn" for head, _, _ in arms))
    folders = []
    for number, (head, backbone, skill) in enumerate(arms):
        for seed in range(seeds):
            folder = home / "runs" / f"{head}-{backbone}-seed{seed}"
            experiment = experiment_of(home / "data", head, backbone, seed)
            folders.append(make_run(folder, experiment, world, skill + 0.1 * seed, draw=10 * number + seed))
    return folders
