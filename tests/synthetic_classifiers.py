"""Classification runs without training: what finished runs leave, with predictions of simulated networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from synthetic_runs import provenance_of

from detr_container.base.files import write_json, write_jsonl
from detr_container.compare.options import ReportOptions
from detr_container.compare.report import write_report
from detr_container.config.classification import ClassificationExperiment
from detr_container.config.experiments import named
from detr_container.config.settings import to_dict
from detr_container.datasets.folders import ImageFolder, open_folder
from detr_container.tasks.classification.predictions import MOST, NAME, Predictions

EPOCHS = 4
LONG = "timm/a_backbone_of_a_name_without_any_space_at_all_weights_imagenet22k_window7_384"
AWKWARD = (
    "<img src=x onerror=alert(1)>",
    "say \"cheese\" & 'more'",
    "{{ 7 * 7 }} $x^2$ ]]>",
    "\N{HEBREW LETTER SHIN} \N{SLICE OF PIZZA}",
    "a_class_of_a_name_without_any_space_at_all_that_goes_on_and_on",
    "| a | b |",
    "`code`",
)
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
BACKBONES = (("container_light_tiny", 1.4), ("mh_dw_tiny", 1.1), ("resnet18", 0.6))
"""Names, and how good they are made."""


@dataclass(frozen=True)
class World:
    """Image folders; hard: [N] how hard each validation image is, for every network alike."""

    root: Path
    val: ImageFolder
    hard: NDArray[np.float64]


def make_data(root: Path, classes: Sequence[str] = CLASSES, images: int = 20, seed: int = 7) -> World:
    """Folders of plain images; the validation split has about so many of each class, fewer of later ones."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(max(1, images - 2 * number)):
                pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(folder / f"{index:03d}.png")
    val = open_folder(root / "val")
    return World(root, val, rng.normal(size=len(val)))


def experiment_of(world: World, backbone: str, seed: int = 0, **data: Any) -> ClassificationExperiment:
    """A small experiment on such folders; data: other settings of its section."""
    base = named("classify_demo").experiment
    assert isinstance(base, ClassificationExperiment)
    return replace(
        base,
        backbone=replace(base.backbone, name=backbone),
        data=replace(base.data, **{"root": world.root, "make_shapes": (0, 0, 0), "repeats": 3, **data}),
        train=replace(base.train, epochs=EPOCHS, batch=8, micro_batch=8),
        seed=seed,
        device="cpu",
    )


def predict(world: World, skill: float, draw: int) -> Predictions:
    """What a network finds that is so good: logits that are noise, higher at the true class, less so of hard images."""
    rng, labels = np.random.default_rng(draw), world.val.labels
    logits = rng.normal(size=(len(labels), len(world.val.classes)))
    logits[np.arange(len(labels)), labels] += skill - world.hard
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = np.argsort(-chance, axis=1, kind="stable")[:, :MOST]
    return Predictions(
        np.arange(len(labels)),
        labels,
        best,
        np.take_along_axis(chance, best, axis=1).astype(np.float32),
        chance[np.arange(len(labels)), labels].astype(np.float32),
    )


def make_run(
    folder: Path, experiment: ClassificationExperiment, world: World, skill: float, epochs: int = EPOCHS, draw: int = 0
) -> Path:
    """A run that was evaluated after each of so many epochs, a little better each time; draw: of its predictions."""
    write_json(folder / "config.json", to_dict(experiment))
    evaluations, metrics, names = [], [], world.val.classes
    for epoch in range(1, epochs + 1):
        found = predict(world, skill - 0.5 * (EPOCHS - epoch), 1000 * draw + epoch)
        place = folder / "detections" / f"epoch-{epoch:03d}"
        found.write(place)
        scores = {
            "top1": float(found.top(1).mean()),
            "top5": float(found.top(5).mean()),
            "loss": float(-np.log(found.true_probability).mean()),
            "images": len(found.labels),
        }
        rows = [{"name": name, "images": int((found.labels == k).sum())} for k, name in enumerate(names)]
        noted = {**world.val.version(), "size": experiment.data.evaluated_at, "grey": experiment.data.grey}
        write_json(place / "scores.json", {**scores, "per_class": rows, "evaluated_with": noted})
        evaluations.append({"step": 12 * epoch, "epoch": epoch, **scores})
        for step in range(12 * epoch - 9, 12 * epoch + 1, 3):
            row = {"step": step, "epoch": step / 12, "loss": (6 + draw) / (4 + step), "lr": 1e-4, "grad_norm": 1.0}
            metrics.append({**row, "images_per_second": 200.0 + draw, "memory_gib": 0.5 + 0.1 * draw})
    write_jsonl(folder / "evaluations.jsonl", evaluations)
    write_jsonl(folder / "metrics.jsonl", metrics)
    write_jsonl(folder / "provenance.jsonl", [provenance_line(world, experiment)])
    return folder


def provenance_line(world: World, experiment: ClassificationExperiment, **changed: Any) -> dict[str, Any]:
    """What a start of a run notes: of the training set the share that it sees."""
    train = open_folder(world.root / "train")
    if experiment.data.fraction < 1:
        train = train.stratified(experiment.data.fraction, experiment.seed)
    return provenance_of("classify_demo", {"train": train.version(), "val": world.val.version()}, **changed)


def comparison(home: Path, seeds: int = 2, backbones: Sequence[tuple[str, float]] = BACKBONES) -> World:
    """Some backbones with some seeds each, on image folders in `home`/data."""
    world = make_data(home / "data")
    for number, (backbone, skill) in enumerate(backbones):
        for seed in range(seeds):
            folder = home / "runs" / f"{backbone}-seed{seed}"
            experiment = experiment_of(world, backbone, seed)
            make_run(folder, experiment, world, skill + 0.2 * seed, draw=10 * number + seed)
    return world


def ordinary(folder: Path, seeds: int) -> Path:
    """Three backbones; returns the report's page."""
    comparison(folder, seeds)
    return write_report(ReportOptions((str(folder / "runs"),), output=folder / "report", resamples=50))


def awkward(folder: Path) -> Path:
    """Class names that try to break the page, an unfinished run, a target that nobody reaches, arms alike by name."""
    world = make_data(folder / "data", AWKWARD, images=14)
    for number, (backbone, clip) in enumerate((("resnet50", 0.0), (LONG, 0.0), (LONG, 0.5), ("mh_dw", 0.0))):
        for seed in range(2 if number < 2 else 1):
            experiment = experiment_of(world, backbone, seed)
            experiment = replace(experiment, train=replace(experiment.train, clip=clip))
            place = folder / "runs" / f"{number}-{seed}"
            epochs = 1 if number == 1 and seed else EPOCHS
            make_run(place, experiment, world, 0.5 * number, epochs, draw=10 * number + seed)
    return write_report(ReportOptions((str(folder / "runs"),), output=folder / "report", resamples=20, target=0.99))


def last_predictions(run: Path, epoch: int = EPOCHS) -> Predictions:
    """What an epoch's evaluation found."""
    return Predictions.read(run / "detections" / f"epoch-{epoch:03d}" / NAME)
