"""The commands on data sets: data make-shapes, data check, data speed, data canvases."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from detr_container.base.limits import Images, Many, Seed, Side, Workers, positive
from detr_container.base.shortage import asking
from detr_container.base.terminal import console
from detr_container.config.arguments import experiment_first, parse
from detr_container.config.detection import detection
from detr_container.config.settings import Experiment

if TYPE_CHECKING:
    from detr_container.datasets.check_report import Report


@dataclass(frozen=True)
class ShapesOptions:
    """Options of `data make-shapes`."""

    root: tyro.conf.Positional[Path]
    """The folder to make."""
    train: Images = 2000
    """Training images."""
    val: Images = 200
    """Validation images."""
    size: Annotated[int, positive(4096)] = 128
    """Side of the square images in pixels."""
    seed: Seed = 0
    """Another seed makes other images."""
    workers: Workers = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that draw."""


def data_make_shapes(arguments: Sequence[str]) -> int:
    """Make a small detection data set of overlapping coloured shapes in COCO's layout: `data make-shapes FOLDER`."""
    options = parse(ShapesOptions, arguments, "data make-shapes", data_make_shapes.__doc__)
    from detr_container.datasets.shapes import make_shapes

    with asking("the images", {"size": options.size, "workers": options.workers}):
        created = make_shapes(
            options.root, options.train, options.val, options.size, options.seed, options.workers, progress=True
        )
    result = (
        f"made {options.train} training and {options.val} validation images in"
        if created
        else "already there, unchanged:"
    )
    console().print(f"{result} {options.root}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class CheckOptions:
    """Options of `data check`."""

    root: tyro.conf.Positional[Path | None] = None
    """A folder in COCO's layout: train2017/, val2017/, annotations/instances_{train,val}2017.json; or image folders:
    train/ and val/, in each of which a folder per class holds its images."""
    train_images: Path | None = None
    """Training images, where they are not in the root."""
    train_annotations: Path | None = None
    """Training annotations in COCO's format, where they are not in the root."""
    val_images: Path | None = None
    """Validation images, where they are not in the root."""
    val_annotations: Path | None = None
    """Validation annotations in COCO's format, where they are not in the root."""
    d2_dataset: str = ""
    """Instead a data set of detectron2's catalog: NAME for NAME_train and NAME_val, or two names as in a,b."""
    d2_import: str = ""
    """The Python module that registers it there."""
    workers: Workers = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that read images."""
    sample: Images = 0
    """How many images of each split to decode, always the same ones; 0: all."""
    apply_orientation: bool = False
    """Read images as training with data.apply_orientation does. COCO's layout only."""
    masks: bool = False
    """Check the segmentations as well, which only Mask R-CNN needs. COCO's layout only."""
    duplicates: bool = False
    """Image folders: compare the content of all files, within a split and between both. COCO's layout: always so."""
    size: Side = 224
    """Image folders: the network's input in pixels, below which images are noted as small."""
    examples: Many = 5
    """How many findings of one kind to list."""


def data_check(arguments: Sequence[str]) -> int:
    """Read a data set as training will and report what is wrong: `data check ROOT`. Exit status 1 on errors."""
    options = parse(CheckOptions, arguments, "data check", data_check.__doc__)
    with asking("the check", {"workers": options.workers}):
        report = _check_folders(options) if _is_image_folders(options) else _check_coco(options)
    sys.stdout.write("\n".join(report.lines(options.examples)) + "\n")
    return 1 if report.errors else 0


def _is_image_folders(options: CheckOptions) -> bool:
    if options.train_annotations or options.val_annotations:
        return False
    if options.root is None:
        return bool(options.train_images and options.val_images)
    from detr_container.datasets.check_folders import is_image_folders

    return is_image_folders(options.root)


def _check_coco(options: CheckOptions) -> Report:
    from detr_container.config.detection import DataConfig
    from detr_container.datasets.check import check_dataset
    from detr_container.tasks.detection.splits import both_splits

    names = ("root", "train_images", "train_annotations", "val_images", "val_annotations", "d2_dataset", "d2_import")
    data = DataConfig(**{name: getattr(options, name) for name in names})
    splits = dict(zip(("train", "val"), both_splits(data), strict=True))
    return check_dataset(splits, options.workers, True, options.sample, options.apply_orientation, options.masks)


def _check_folders(options: CheckOptions) -> Report:
    from detr_container.datasets.check_folders import check_folders
    from detr_container.datasets.folders import resolve

    folders = resolve(options.root, options.train_images, options.val_images)
    splits = dict(zip(("train", "val"), folders, strict=True))
    return check_folders(splits, options.workers, True, options.sample, options.duplicates, options.size)


def data_speed(arguments: Sequence[str]) -> int:
    """Measure how fast images are loaded: `data speed EXPERIMENT --data.root ROOT`, or --images 200 without any."""
    experiment, rest = experiment_first(arguments, "data speed")
    from detr_container.measure.loading import SpeedOptions, run

    options = parse(SpeedOptions, rest, "data speed", data_speed.__doc__, SpeedOptions(experiment))
    return run(options.settings, options.measure, options.output)


@dataclass(frozen=True)
class CanvasesOptions:
    """Options of `data canvases`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    counts: tuple[Annotated[int, positive(1024)], ...] = (8, 16, 32, 48, 64)
    """Numbers of canvases to try."""
    images: tuple[Annotated[int, positive(1024)], ...] = (2, 16)
    """Images per forward pass in training to try (train.micro_batch)."""


def data_canvases(arguments: Sequence[str]) -> int:
    """Show how many more pixels few canvases cost: `data canvases EXPERIMENT --data.root ROOT`."""
    experiment, rest = experiment_first(arguments, "data canvases")
    if not experiment.shows_objects:
        raise ValueError(
            f"{experiment.name} is of {experiment.task}, whose images all have one size (data.size), so that no pixels "
            "are added: `detr-container data check` looks at its data"
        )
    options = parse(CanvasesOptions, rest, "data canvases", data_canvases.__doc__, CanvasesOptions(experiment))
    mine = detection(options.settings)
    from detr_container.tasks.detection.build import open_data, size_multiple
    from detr_container.tasks.detection.canvases import EVALUATION, TRAINING, Grid

    with asking("the annotation files", {}):
        data = open_data(mine)
    grid = Grid(mine, size_multiple(mine))
    train, val = data.train.annotations.sizes, data.val.annotations.sizes
    table = Table("canvases", title="Pixels added to batches padded to their largest image")
    for images in options.images:
        table.add_column(f"training, {images} images", justify="right")
    table.add_column(f"evaluation, {mine.data.eval_batch} images", justify="right")
    for count in options.counts:
        found = [grid.training(train, images, most=count) for images in options.images]
        found.append(grid.evaluation(val, most=count))
        table.add_row(str(count), *(f"{each.waste:.1%}" for each in found))
    screen = console()
    screen.print(table)
    training = grid.training(train, mine.train.micro_batch, most=TRAINING)
    evaluation = grid.evaluation(val, most=EVALUATION)
    screen.print(f"a run has, in training, {training}; in evaluation {evaluation}", soft_wrap=True)
    return 0
