"""What a training step of an experiment costs, part by part, with parameters, FLOPs and memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr_container.datasets.batch import Batch, Sample, collate
from detr_container.datasets.loader import StepBatches, batches, training_loader
from detr_container.launch.memory import keep_freed_memory
from detr_container.models.detector import Detector

from .build import build_criterion, build_detector, build_matcher, open_data
from .config import Experiment
from .distributed import choose_device
from .evaluate import autocast
from .files import write_json
from .optim import clipped_step, make_optimiser, set_learning_rates

PARTS = ("data", "forward", "matching", "loss", "backward", "optimiser")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of `benchmark`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    images: int = 2
    """Pictures per step."""
    size: tuple[int, int] = (800, 1333)
    """Height and width in pixels of made pictures."""
    source: Literal["made", "data"] = "made"
    """`made`: random pictures of one size, in memory; `data`: the experiment's own, loaded as in training."""
    classes: int = 80
    """Classes of made pictures."""
    objects: int = 7
    """Objects on each made picture (COCO has 7.3 on average)."""
    steps: int = 10
    """Steps that are measured; the median is reported."""
    warmup: int = 2
    """Steps before, which are not."""
    output: Path | None = None
    """Also write the figures to this JSON file."""


class _Stopwatch:
    """Seconds by part of each step; waits for the GPU at the borders, so parts do not run into each other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[name].append(self._now() - began)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run(options: BenchmarkOptions) -> int:
    """Measure, and print two tables."""
    figures = measure(options)
    if options.output:
        write_json(options.output, figures)
    Console().print(*_tables(figures))
    return 0


def measure(options: BenchmarkOptions) -> dict[str, Any]:
    """All figures of one experiment: seconds by part (medians), images/s, memory in GiB, parameters and GFLOPs."""
    experiment = options.settings
    device = choose_device(experiment.device)
    if device.type == "cpu":
        keep_freed_memory()
    classes = len(open_data(experiment).classes) if options.source == "data" else options.classes
    model = build_detector(experiment, classes, weights=False).to(device)
    supply = _loaded(options, model) if options.source == "data" else _made(options, model)
    watch = _Stopwatch(device)
    _train(model, experiment, supply, watch, options.warmup + options.steps)
    seconds = {name: statistics.median(watch.seconds[name][options.warmup :]) for name in PARTS}
    if options.source == "made":
        del seconds["data"]
    steps = [sum(column) for column in zip(*(watch.seconds[name][options.warmup :] for name in seconds), strict=True)]
    step = statistics.median(steps)
    return {
        "experiment": experiment.name,
        "backbone": experiment.backbone.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "precision": experiment.train.precision,
        "images": options.images,
        "size": "as in training" if options.source == "data" else list(options.size),
        "seconds": seconds,
        "step_seconds": step,
        "images_per_second": options.images / step,
        "peak_memory_gib": _peak(device),
        "parameters": _parameters(model),
        "gflops": count_flops(model, options.size),
    }


def _train(model: Detector, experiment: Experiment, supply: Iterator[Batch], watch: _Stopwatch, steps: int) -> None:
    """Training steps as `train` makes them, with a stopwatch between the parts."""
    device = watch.device
    matcher, criterion = build_matcher(experiment), build_criterion(experiment)
    optimiser = make_optimiser(model.train(), experiment.train)
    set_learning_rates(optimiser, 1.0)
    for _ in range(steps):
        with watch.part("data"):
            host = next(supply)
        with watch.part("forward"), autocast(experiment, device):
            batch = host.to(device)
            output = model(batch.images, batch.sizes, batch.padded)
        with watch.part("matching"):
            matches = matcher(output, batch.targets)
        with watch.part("loss"):
            losses = criterion(output, batch.targets, matches)
        with watch.part("backward"):
            losses.total.backward()
        with watch.part("optimiser"):
            clipped_step(optimiser, experiment.train.clip)


def _made(options: BenchmarkOptions, model: Detector) -> Iterator[Batch]:
    """The same random batch again and again."""
    generator = torch.Generator().manual_seed(options.settings.seed)
    height, width = options.size
    samples = []
    for number in range(options.images):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        boxes = torch.rand(options.objects, 4, generator=generator) * 0.5 + 0.1
        labels = torch.randint(0, options.classes, (options.objects,), generator=generator)
        samples.append(Sample(image, boxes, labels, number, (height, width)))
    batch = collate(samples, model.backbone.size_multiple)
    if torch.cuda.is_available():
        batch = batch.pin_memory()
    while True:
        yield batch


def _loaded(options: BenchmarkOptions, model: Detector) -> Iterator[Batch]:
    """Batches of the experiment's training set, as training loads them."""
    experiment, total = options.settings, options.warmup + options.steps
    dataset = open_data(experiment).train
    sampler = StepBatches(
        len(dataset), seed=experiment.seed, batch=options.images, micro_batch=options.images, total_steps=total
    )
    data, multiple = experiment.data, model.backbone.size_multiple
    return batches(
        training_loader(
            dataset,
            sampler,
            multiple=multiple,
            canvas=data.canvas,
            workers=data.workers,
            pin_memory=torch.cuda.is_available(),
        )
    )


@torch.no_grad()
def count_flops(model: Detector, size: tuple[int, int]) -> float:
    """GFLOPs of a forward pass on one picture of (height, width) pixels; a multiply-add counts as two."""
    device = next(model.parameters()).device
    multiple = model.backbone.size_multiple
    height, width = (-(-side // multiple) * multiple for side in size)
    image = torch.zeros(1, 3, height, width, device=device).contiguous(memory_format=torch.channels_last)
    training = model.training
    counter = FlopCounterMode(display=False)
    # The counter does not know a CPU's fused attention; written out, attention counts the same everywhere.
    with counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(image, torch.tensor([size], device=device))
    model.train(training)
    return counter.get_total_flops() / 1e9


def _parameters(model: Detector) -> dict[str, int]:
    total = sum(p.numel() for p in model.parameters())
    backbone = sum(p.numel() for p in model.backbone.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": total, "backbone": backbone, "trained": trained}


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _tables(figures: dict[str, Any]) -> tuple[Table, Table]:
    size = figures["size"] if isinstance(figures["size"], str) else "{} x {}".format(*figures["size"])
    title = (
        f"{figures['experiment']}, {figures['images']} pictures of {size}, {figures['precision']}, {figures['device']}"
    )
    parts = Table("part", "ms", "share", title=title)
    for name, seconds in figures["seconds"].items():
        parts.add_row(name, f"{1000 * seconds:.1f}", f"{100 * seconds / figures['step_seconds']:.0f} %")
    parts.add_row("step", f"{1000 * figures['step_seconds']:.1f}", "")
    whole = Table("", "")
    counts = figures["parameters"]
    whole.add_row("images/s", f"{figures['images_per_second']:.2f}")
    whole.add_row("peak memory", f"{figures['peak_memory_gib']:.2f} GiB")
    whole.add_row(
        "parameters", f"{counts['total']:,} ({counts['backbone']:,} in the backbone, {counts['trained']:,} trained)"
    )
    whole.add_row("GFLOPs of a forward pass on one picture", f"{figures['gflops']:.1f}")
    for table in (parts, whole):
        table.columns[1].justify = "right"
    return parts, whole
