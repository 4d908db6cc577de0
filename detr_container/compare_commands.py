"""The commands that compare: compare, report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from .arguments import parse
from .compare.options import CompareOptions, ReportOptions
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
        return 0
    return campaign.submit() if options.submit else campaign.run()


def report(arguments: Sequence[str]) -> int:
    """One page on finished or running runs: tables, intervals, plots, what differs: `report RUN ...`."""
    options = parse(ReportOptions, arguments, "report", report.__doc__)
    from .compare.report import judging, write_report

    with judging() as tell:
        page = write_report(options, tell)
    sys.stdout.write(f"{page}\n{page.resolve().as_uri()}\n")
    return 0
