"""How fast the loader alone is: images/s, the first batch, and what an image costs its processes and this one."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import tyro
from PIL import Image, ImageDraw
from rich import box
from rich.table import Table
from torch import nn

from detr_container.base.files import write_json
from detr_container.base.host_memory import keep_freed_memory
from detr_container.base.limits import Images, Workers, positive
from detr_container.base.processes import cores
from detr_container.base.terminal import console
from detr_container.config.classification import ClassificationExperiment, classification
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import Experiment, validate
from detr_container.datasets.batch import Batch
from detr_container.datasets.handover import AHEAD
from detr_container.datasets.loader import StepBatches
from detr_container.datasets.workers import worker_context
from detr_container.engine.session import choose_device
from detr_container.engine.task import Task
from detr_container.engine.trials import trials_of

SIZES = ((480, 640), (480, 640), (427, 640), (427, 640), (640, 480), (640, 427), (375, 500), (640, 640), (360, 640))
"""(height, width) in pixels, about as frequent as in COCO."""
_ELSEWHERE: dict[str, Any] = dict.fromkeys(("train_images", "train_annotations", "val_images", "val_annotations"))
OURS, TIMMS = "ours", "timm's"
NOISE, QUALITY = 12.0, 95
"""Standard deviation, and that of JPEG, with which an image has COCO's 4.6 bits per pixel."""


@dataclass(frozen=True)
class LoadingOptions:
    """What is measured."""

    workers: tuple[Workers, ...] = (0, 2, 6)
    """Numbers of loader processes to try."""
    seconds: Annotated[float, positive(3600)] = 10.0
    """How long to load with each."""
    images: Images = 0
    """Make so many images of COCO's sizes in a temporary folder, and load those; 0: load the data set's."""
    against: Literal["nothing", "timm"] = "nothing"
    """Classification only: load the same images with timm's own loader in turn with ours."""
    rounds: Annotated[int, positive(1000)] = 5
    """With `against`: how often both are measured, for `seconds` each."""


@dataclass(frozen=True)
class SpeedOptions:
    """Options of `data speed`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    measure: Annotated[LoadingOptions, tyro.conf.arg(name="")] = field(default_factory=LoadingOptions)
    """What is measured."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


@dataclass(frozen=True)
class Speed:
    """Of the loader with so many processes.

    first: seconds to the first batch; rate: images/s; worker, here: milliseconds of CPU time per image, of all loader
    processes and of this one, with all of its threads. name: whose loader, where there are several; rates: images/s of
    each round, of which `rate` is the median.
    """

    workers: int
    first: float
    rate: float
    worker: float
    here: float
    name: str = ""
    rates: tuple[float, ...] = ()

    def most(self, count: int) -> float:
        """Images/s that so many cores could load at most, if they did nothing else."""
        return min(1000 * count / (self.worker + self.here), 1000 / self.here if self.worker else float("inf"))


def run(experiment: Experiment, options: LoadingOptions, output: Path | None = None) -> int:
    """Measure the training loader of an experiment, and print a table."""
    if options.against != "nothing":
        experiment = classification(experiment)
        # timm's loader shows every image once an epoch.
        experiment = replace(experiment, data=replace(experiment.data, repeats=1))
    if any(options.workers):
        worker_context(experiment.preloaded)
    with tempfile.TemporaryDirectory() if options.images else nullcontext() as folder:
        if folder is not None:
            experiment = _on_photographs(experiment, Path(folder), options.images)
        validate(experiment)
        if not experiment.train.micro_batch:
            raise ValueError("train.micro_batch=0: what fits is found when training starts; give a number here")
        speeds = [*measured(experiment, options)]
    if output:
        write_json(output, {"cores": cores(), "speeds": [asdict(each) for each in speeds]}, follow=True)
    console().print(_table(speeds))
    for ours, timms in itertools.pairwise(speeds):
        if timms.name == TIMMS:
            console().print(_ratio(ours, timms), soft_wrap=True)
    return 0


def _on_photographs(experiment: Experiment, root: Path, images: int) -> Experiment:
    """The experiment on made images."""
    if isinstance(experiment, DetectionExperiment):
        make_photographs(root, images, experiment.seed)
        return replace(experiment, data=replace(experiment.data, root=root, d2_dataset="", **_ELSEWHERE))
    experiment = classification(experiment)
    make_photographs(root / "made", images, experiment.seed)
    for split in ("train", "val"):
        for number, file in enumerate(sorted((root / "made" / f"{split}2017").iterdir())):
            # The only image of validation is of both classes: a class without any would be refused.
            for name in ("even", "odd") if split == "val" else (("even", "odd")[number % 2],):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, root / split / name / file.name)
    return replace(experiment, data=replace(experiment.data, root=root, train_images=None, val_images=None))


def measured(experiment: Experiment, options: LoadingOptions) -> Iterator[Speed]:
    """The speed with each number of processes, on the batches that training would load."""
    device = choose_device(experiment.device)
    pin_memory = device.type == "cuda"
    if not pin_memory:
        # As training does.
        keep_freed_memory()
    trials = trials_of(experiment)
    # Batches are padded as the model wants them on its device.
    model = trials.opened().build(weights=False).to(device)
    for workers in options.workers:
        task = trials.like(_with_workers(experiment, workers)).opened()
        steps = task.sampler(
            experiment.seed,
            batch=experiment.train.batch,
            micro_batch=experiment.train.micro_batch,
            total_steps=2**31,
        )
        began = time.perf_counter()
        with closing(_supply(task, model, steps, pin_memory)) as supply:
            next(supply)
            first = time.perf_counter() - began
            if options.against == "timm":
                yield from _against_timm(classification(experiment), supply, workers, first, options)
            else:
                yield Speed(workers, first, *_costs(supply, workers, options.seconds))


def _with_workers(experiment: Experiment, workers: int) -> Experiment:
    if isinstance(experiment, DetectionExperiment):
        return replace(experiment, data=replace(experiment.data, workers=workers))
    experiment = classification(experiment)
    return replace(experiment, data=replace(experiment.data, workers=workers))


def _against_timm(
    experiment: ClassificationExperiment, supply: Iterator[Batch], workers: int, first: float, options: LoadingOptions
) -> Iterator[Speed]:
    """Ours and timm's in turn, so that what slows the machine meanwhile slows both."""
    from detr_container.datasets.folders import resolve

    from .timm_loading import timm_batches

    data = experiment.data
    folder, _ = resolve(data.root, data.train_images, data.val_images)
    began = time.perf_counter()
    with closing(timm_batches(folder, data, experiment.train.micro_batch, workers)) as timms:
        next(timms)
        firsts = {OURS: first, TIMMS: time.perf_counter() - began}
        costs: dict[str, list[tuple[float, float, float]]] = {OURS: [], TIMMS: []}
        for number in range(options.rounds):
            # Who begins alternates: a rise and a fall of the load cancel.
            for name in (OURS, TIMMS) if number % 2 else (TIMMS, OURS):
                costs[name].append(_costs(supply if name == OURS else timms, workers, options.seconds))
    for name, measured in costs.items():
        rate, worker, here = (float(np.median(values)) for values in zip(*measured, strict=True))
        yield Speed(workers, firsts[name], rate, worker, here, name, tuple(each[0] for each in measured))


def _supply(task: Task, model: nn.Module, steps: StepBatches, pin_memory: bool) -> Generator[Batch, None, None]:
    yield from task.batches(model, steps, pin_memory, lambda short: False)


def _costs(supply: Iterator[Any], workers: int, seconds: float) -> tuple[float, float, float]:
    """Images/s, and the milliseconds of CPU time per image of the loader's processes and of this one."""
    # What was made ahead while nobody took it is used up before the clock runs.
    for _ in range(2 * AHEAD * workers):
        next(supply)
    images, began = 0, time.perf_counter()
    theirs, mine = _cpu_of_workers(), time.process_time()
    while time.perf_counter() - began < seconds or not images:
        images += len(next(supply).image_ids)
    each = 1000 / images
    mine, theirs = time.process_time() - mine, _cpu_of_workers() - theirs
    return images / (time.perf_counter() - began), theirs * each, mine * each


def _cpu_of_workers() -> float:
    """Seconds of CPU time that the processes made here have used."""
    times = [psutil.Process(child.pid).cpu_times() for child in active_children()]
    return float(sum(each.user + each.system for each in times))


def _table(speeds: Sequence[Speed]) -> Table:
    """The CPU time is that of an image, in loader processes and in this one; and what all cores could load by it."""
    count = cores()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("processes", "first batch, s", "images/s", "CPU, ms: theirs", "mine", f"{count} cores: images/s"):
        table.add_column(name, justify="right")
    for speed in speeds:
        figures = (f"{speed.first:.2f}", f"{speed.rate:.0f}", f"{speed.worker:.2f}", f"{speed.here:.2f}")
        table.add_row(" ".join([speed.name, str(speed.workers)]).strip(), *figures, f"{speed.most(count):.0f}")
    return table


def _ratio(ours: Speed, timms: Speed) -> str:
    """Of the rates of the same rounds, and of what an image costs all processes."""
    ratios = sorted(mine / other for mine, other in zip(ours.rates, timms.rates, strict=True))
    cost = (timms.worker + timms.here) / (ours.worker + ours.here)
    return (
        f"with {ours.workers} processes, images/s to those of timm's loader: {np.median(ratios):.2f}, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds; images per second of CPU time: {cost:.2f}"
    )


def make_photographs(root: Path, count: int, seed: int = 0) -> None:
    """A data set in COCO's layout whose JPEGs have the sizes and the weight of COCO's: 0.16 MB each on average.

    They show blurred colours, ellipses with boxes around them, and noise.
    """
    for split, images in (("train", count), ("val", 1)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        generator = np.random.default_rng((seed, images))
        shapes, objects = [], []
        for number, (height, width) in zip(range(images), itertools.cycle(SIZES), strict=False):
            name = f"{split}-{number}.jpg"
            boxes = _photograph(folder / name, height, width, generator)
            shapes.append({"id": number, "file_name": name, "height": height, "width": width})
            objects += [
                {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": each, "area": each[2] * each[3]}
                for each in boxes
            ]
        (root / "annotations").mkdir(exist_ok=True)
        content = {
            "images": shapes,
            "annotations": [{"id": number, **each} for number, each in enumerate(objects)],
            "categories": [{"id": 1, "name": "ellipse"}],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _photograph(path: Path, height: int, width: int, generator: np.random.Generator) -> list[list[int]]:
    """Draw one image. Returns the boxes of its seven ellipses: left, top, width, height."""
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    draw, boxes = ImageDraw.Draw(image), []
    for _ in range(7):
        w, h = (int(side) for side in generator.integers(16, (width // 2, height // 2)))
        left, top = int(generator.integers(width - w)), int(generator.integers(height - h))
        draw.ellipse((left, top, left + w, top + h), fill=tuple(map(int, generator.integers(0, 256, 3))))
        boxes.append([left, top, w, h])
    noisy = np.asarray(image) + generator.normal(0, NOISE, (height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return boxes
