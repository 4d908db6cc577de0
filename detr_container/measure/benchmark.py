"""What experiments cost, side by side: parameters, FLOPs, latency, training speed and memory, with their ratios."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from detr_container.base.files import write_json
from detr_container.base.terminal import console, digits, shown
from detr_container.config.settings import Experiment, validate

from .options import PARTS, MeasureOptions, size_text
from .side_by_side import side_by_side

_log = logging.getLogger(__name__)
_NAMES, _METRIC, _RATIO = 32, 9, 18
"""Columns of the terminal that names, a metric, and a ratio with its spread take."""
_MORE = (
    ("images/s", "images_per_second", 1.0),
    ("GPU busy, %", "busy", 100.0),
    ("host waits, %", "host_waits", 100.0),
    ("kernels", "kernels", 1.0),
    ("sizes met", "sizes", 1.0),
    ("a new size, s", "new_size", 1.0),
    ("all of them, s", "new_sizes", 1.0),
    ("whole schedule, h", "hours", 1.0),
)
"""Of a training step, beside its parts: in words, the key, and what it is multiplied by."""
Precision = Literal["fp32", "tf32", "bf16"]
Graphs = Literal["auto", "off"]
Metrics = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of `benchmark`."""

    settings: Annotated[Experiment, tyro.conf.arg(name="")]
    measure: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    """What is measured, and how often."""
    precision: tuple[Precision, ...] = ()
    """Measure each experiment in each of these; none: in its own (train.precision)."""
    graphs: tuple[Graphs, ...] = ()
    """Measure each experiment with each of these; none: as it says (train.graphs)."""
    output: Path | None = None
    """Also write all metrics, and those of every round, to this JSON file."""


def run(options: Sequence[BenchmarkOptions]) -> int:
    """Measure experiments and print a table; 1 when one of them failed. All but their settings is the first's.

    Raises ValueError when nothing could be measured because of the settings, and for experiments of several tasks.
    """
    _check_task([each.settings for each in options], options[0].measure)
    experiments = variants(labelled([each.settings for each in options]), options[0].precision, options[0].graphs)
    for label, experiment in experiments.items():
        # What cannot be built at all is reported by the process that tries, so that the others continue.
        with suppress(ValueError):
            for warning in validate(experiment):
                _log.warning("%s: %s", label, warning)
    result = side_by_side(experiments, options[0].measure, progress=True)
    if options[0].output:
        write_json(options[0].output, result, follow=True)
    found: dict[str, dict[str, Any]] = result["experiments"]
    failures = {label: each["failure"] for label, each in found.items() if each["failure"]}
    if not any(each["figures"] for each in found.values()) and all(each["refused"] for each in found.values()):
        raise ValueError("; ".join(dict.fromkeys(failures.values())))
    screen = console()
    screen.print(*tables(result, screen.width))
    for label, failure in failures.items():
        sys.stderr.write(f"error: {label}: {failure}\n")
    return 1 if failures else 0


def _check_task(experiments: Sequence[Experiment], measure: MeasureOptions) -> None:
    """Raise ValueError for experiments of several tasks; warn of what has no meaning for theirs."""
    first = experiments[0]
    others = [each for each in experiments if each.task != first.task]
    if others:
        raise ValueError(
            f"{first.name} is of {first.task}, {others[0].name} of {others[0].task}: what they do with an image is "
            "not the same work, so measure each task by itself"
        )
    if not first.shows_objects and measure.source == "coco":
        raise ValueError(f"source=coco: images of {first.task} all have one size: use --source synthetic or data")
    if not first.shows_objects and measure.objects != MeasureOptions.objects:
        _log.warning("objects=%d has no effect: images of %s have none to find", measure.objects, first.task)


def labelled(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    """Experiments by their names; the same one again gets a number (and shows what noise alone does)."""
    labels: dict[str, Experiment] = {}
    for experiment in experiments:
        label, number = experiment.name, 2
        while label in labels:
            label, number = f"{experiment.name} ({number})", number + 1
        labels[label] = experiment
    return labels


def variants(
    experiments: Mapping[str, Experiment], precisions: Sequence[Precision], graphs: Sequence[Graphs]
) -> dict[str, Experiment]:
    """Each experiment in each precision and with and without graphs, as far as these are given; labels say which."""
    found: dict[str, Experiment] = {}
    for label, experiment in experiments.items():
        train = experiment.train
        for precision, graph in product(precisions or (train.precision,), graphs or (train.graphs,)):
            words = [label, *([precision] if precisions else ()), *([f"graphs={graph}"] if graphs else ())]
            changed = replace(train, precision=precision, graphs=graph)
            found[" ".join(words)] = replace(experiment, train=changed)
    return found


def tables(result: dict[str, Any], width: int) -> Iterator[Table | str]:
    """What `side_by_side` returned, for reading; experiments that do not fit into `width` go into further tables."""
    others = [label for label in result["experiments"] if label != result["first"]]
    step = max(1, (width - _NAMES - _METRIC) // (_METRIC + _RATIO))
    for start in range(0, max(1, len(others)), step):
        yield _table(result, [result["first"], *others[start : start + step]])
    yield from _notes(result)


def _table(result: dict[str, Any], labels: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for label in labels:
        failed = "\nfailed" if result["experiments"][label]["failure"] else ""
        table.add_column(Text.assemble(shown(label), (failed, "red")), justify="right", overflow="fold")
        if label != result["first"]:
            table.add_column("ratio", justify="right", style="cyan", no_wrap=True)
        elif len(labels) == 1:
            table.add_column("rounds", justify="right", style="cyan", no_wrap=True)
    metrics = [result["experiments"][label]["figures"] for label in labels]
    for title, rows in _sections(result["options"]):
        known = [(name, key, scale) for name, key, scale in rows if any(key in each for each in metrics)]
        if known:
            table.add_row(Text(title, style="bold"))
        for name, key, scale in known:
            cells = [cell for each in metrics for cell in _cells(each, key, scale, alone=len(labels) == 1)]
            table.add_row(f"  {name}", *(cells if len(labels) == 1 else [cells[0], *cells[2:]]))
        if known:
            table.add_section()
    return table


def _sections(options: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, float]]]]:
    """Titles, and under each the rows: name, key of the metric, and what it is multiplied by."""
    parts = ("total", "backbone", "head")
    yield "parameters, millions", [(part, f"parameters/{part}", 1e-6) for part in (*parts, "trained")]
    sizes = list(dict.fromkeys(map(size_text, options["sizes"])))
    batches = sorted(set(options["batch"]))
    counts = sorted({1, *batches})
    for size in sizes:
        yield f"GFLOPs, 1 x {size}", [(part, f"gflops/{size}/{part}", 1) for part in parts]
    for size in sizes:
        for count in counts:
            rows = [(part, f"forward/{size}/{count}/{part}", 1e3) for part in parts]
            yield f"forward pass, ms, {count} x {size}", rows
    largest = size_text(max(options["sizes"], key=lambda size: size[0] * size[1]))
    of = {"data": "as in training", "coco": "COCO's"}.get(options["source"], largest)
    for count in batches:
        steps = [(part, f"training/{count}/{part}", 1e3) for part in ("step", *PARTS)]
        more = [(name, f"training/{count}/{key}", scale) for name, key, scale in _MORE]
        yield f"training step, ms, {count} x {of}", [*steps, *more]
    memory = [(f"forward pass, {count} x {largest}", f"memory/forward/{largest}/{count}", 1.0) for count in counts]
    memory += [(f"training step, {count} x {of}", f"memory/training/{count}", 1.0) for count in batches]
    yield "peak memory, GiB", [*memory, ("without a model", "memory/idle", 1.0)]


def _cells(metrics: Metrics, key: str, scale: float, alone: bool) -> tuple[str, str]:
    """A metric, and beside it its ratio to the first experiment; `alone`: how far its rounds are apart."""
    metric = metrics.get(key)
    if metric is None:
        return "-", ""
    text = digits(metric["value"] * scale)
    if alone:
        rounds = [value * scale for value in metric.get("rounds", [])]
        work, _, part = key.rpartition("/")
        if work.startswith("training/") and part in PARTS:
            text = f"{text} ({100 * metric['value'] / metrics[f'{work}/step']['value']:.0f} %)"
        return text, f"{digits(min(rounds))}..{digits(max(rounds))}" if rounds else ""
    ratio = metric.get("ratio")
    if ratio is None:
        return text, ""
    median, least, most = (
        f"{ratio[name]:.2f}" if ratio[name] < 10 else digits(ratio[name]) for name in ("median", "least", "most")
    )
    return text, f"{median} ({least}..{most})" if "rounds" in metric else median


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """On what was measured, and what the metrics mean."""
    found, rounds = result["experiments"], result["options"]["rounds"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for label, each in found.items():
        if "device" in each:
            alike.setdefault((each["device"], each["precision"], each["memory"]), []).append(label)
    for (device, precision, memory), labels in alike.items():
        whose = f"{', '.join(labels)}: " if len(alike) > 1 else ""
        yield f"{whose}{device}, {precision}. Memory: {memory}; all but the last row is what comes on top of that one."
    yield (
        "Forward pass: images on the device to detections or probabilities; normalisation counts as backbone, what "
        "follows as head (of a whole model of timm, CONTAINER-PAM and MH-MLP, all is backbone). Medians of "
        f"{rounds} rounds." + (f" Ratios: to {result['first']}, within each round (least..most)." * (len(found) > 1))
    )
    if any("hours" in key for each in found.values() for key in each["figures"]):
        yield (
            "Whole schedule: on one process, by the images/s above, each micro batch with an update; evaluations as "
            "fast as the fastest forward pass of the largest size, where that is measured; without loading."
        )
    for label, each in found.items():
        yield from (f"{label}: {warning}" for warning in each.get("warnings", []))
