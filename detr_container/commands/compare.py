"""The commands that compare, and that list what can be compared: compare, report, backbones."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detr_container.base.files import write_json
from detr_container.base.limits import natural
from detr_container.base.shortage import asking
from detr_container.base.terminal import console
from detr_container.compare.options import CompareOptions, ReportOptions
from detr_container.config.arguments import parse


def compare(arguments: Sequence[str]) -> int:
    """Train heads x backbones x seeds, alike in all else, and report which is better, by how much, how surely."""
    from detr_container.jobs import submit as jobs

    default = replace(CompareOptions(), slurm=jobs.usual_resources())
    options = parse(CompareOptions, arguments, "compare", compare.__doc__, default)
    from detr_container.compare.comparison import Comparison

    comparison = Comparison.of(options, shlex.join(["detr-container", "compare", *arguments]))
    console().print(*comparison.plan(), sep="\n", soft_wrap=True)
    if options.dry_run:
        return comparison.exit_status
    return comparison.submit() if options.submit else comparison.train()


def report(arguments: Sequence[str]) -> int:
    """One page on finished or running runs: tables, intervals, plots, what differs: `report RUN ...`."""
    options = parse(ReportOptions, arguments, "report", report.__doc__)
    from detr_container.compare.report import evaluation_progress, write_report

    with asking("the report", {"resamples": options.resamples}), evaluation_progress() as on_progress:
        page = write_report(options, on_progress)
    sys.stdout.write(f"{page}\n{page.resolve().as_uri()}\n")
    return 0


FEW = 12
"""Backbones that are tried by default: a minute or two."""


@dataclass(frozen=True)
class BackbonesOptions:
    """Options of `backbones`."""

    pattern: tyro.conf.Positional[str] = ""
    """Part of a name, or a pattern such as 'convnext*'; without it all are checked, which takes many minutes."""
    tried: Annotated[Literal["few", "yes", "no"], tyro.conf.arg(name="try")] = "few"
    """Also take training steps (forward and backward, at two sizes, on the CPU): `few` where at most 12 names fit."""
    processes: Annotated[int, natural(512)] = 0
    """How many are checked together, each in a process of about 0.5 GB; 0: one for each core, 8 at most."""
    costs: Annotated[int, natural(16_384)] = 0
    """Instead, what classifiers of 1000 classes cost on images of so many pixels to a side, beside what was published:
    parameters and multiply-adds; without a pattern of the CONTAINER family and what it is compared with."""
    output: Path | None = None
    """Also write the table to this JSON file."""


def backbones(arguments: Sequence[str]) -> int:
    """Which backbones work: parameters, image sizes, strides, channels, or why not: `backbones [PATTERN]`."""
    options = parse(BackbonesOptions, arguments, "backbones", backbones.__doc__)
    if options.costs:
        return _costs(options)
    from detr_container.base.processes import cores
    from detr_container.datasets.progress_bar import track
    from detr_container.measure.backbones import entries, names_of, table_row

    names = names_of(options.pattern)
    tried = options.tried == "yes" or (options.tried == "few" and len(names) <= FEW)
    found, width = [], max(map(len, names))
    console().print(table_row(None, width), soft_wrap=True)
    checked = entries(names, tried, min(options.processes or min(cores(), 8), len(names)))
    for entry in track(checked, len(names), "checking backbones", show=True):
        found.append(entry)
        console().print(table_row(entry, width), soft_wrap=True)
    working = sum(not entry.refused for entry in found)
    hint = "" if tried else "; only shapes were checked: --try yes takes training steps, too"
    console().print(f"{working} of {len(names)} work{hint}", soft_wrap=True)
    if options.output is not None:
        write_json(options.output, {"tried": tried, "backbones": [asdict(entry) for entry in found]}, follow=True)
    return 0


def _costs(options: BackbonesOptions) -> int:
    from detr_container.measure.backbones import names_of
    from detr_container.measure.classifier_costs import FAMILY, classifier_costs, markdown_head, markdown_row

    found = []
    for line in markdown_head(options.costs):
        console().print(line, soft_wrap=True, markup=False)
    for name in names_of(options.pattern) if options.pattern else FAMILY:
        found.append(classifier_costs(name, options.costs))
        console().print(markdown_row(found[-1]), soft_wrap=True, markup=False)
    if options.output is not None:
        write_json(
            options.output, {"pixels": options.costs, "classifiers": [asdict(each) for each in found]}, follow=True
        )
    return 0
