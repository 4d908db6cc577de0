"""The commands that compare, and that say what can be compared: compare, report, backbones."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tyro

from .arguments import parse
from .compare.options import CompareOptions, ReportOptions
from .shortage import asking
from .terminal import console


def compare(arguments: Sequence[str]) -> int:
    """Train heads x backbones x seeds, alike in all else, and report which is better, by how much, how surely."""
    from . import jobs

    default = replace(CompareOptions(), slurm=jobs.usual_resources())
    options = parse(CompareOptions, arguments, "compare", compare.__doc__, default)
    from .compare.campaign import Campaign

    campaign = Campaign.of(options, shlex.join(["detr-container", "compare", *arguments]))
    console().print(*campaign.plan(), sep="\n", soft_wrap=True)
    if options.dry_run:
        return campaign.status
    return campaign.submit() if options.submit else campaign.run()


def report(arguments: Sequence[str]) -> int:
    """One page on finished or running runs: tables, intervals, plots, what differs: `report RUN ...`."""
    options = parse(ReportOptions, arguments, "report", report.__doc__)
    from .compare.report import judging, write_report

    with asking("the report", {"resamples": options.resamples}), judging() as tell:
        page = write_report(options, tell)
    sys.stdout.write(f"{page}\n{page.resolve().as_uri()}\n")
    return 0


@dataclass(frozen=True)
class BackbonesOptions:
    """Options of `backbones`."""

    pattern: tyro.conf.Positional[str] = ""
    """Part of a name, or a pattern such as 'convnext*'; without it all are looked at, which takes many minutes."""


def backbones(arguments: Sequence[str]) -> int:
    """Which backbones work: channels, strides, parameters and image sizes, or why not: `backbones [PATTERN]`."""
    options = parse(BackbonesOptions, arguments, "backbones", backbones.__doc__)
    from .backbones import entries, names_of

    names = names_of(options.pattern)
    width, working = max(map(len, names)), 0
    for entry in entries(names):
        if entry.refused:
            told = f"no: {entry.refused}"
        else:
            working += 1
            size = (
                f"square images of one size (made for {entry.side})"
                if entry.side
                else f"any size, multiple {entry.multiple}"
            )
            told = (
                f"{entry.parameters / 1e6:7.1f} M  strides {' '.join(map(str, entry.strides))}; "
                f"channels {' '.join(map(str, entry.channels))}; {size}"
            )
        console().print(f"{entry.name:<{width}}  {told}", soft_wrap=True)
    console().print(f"{working} of {len(names)} work", soft_wrap=True)
    return 0
