"""How accuracy grew: over epochs of the schedule, and over the images that these showed."""

from __future__ import annotations

from ..document import Column, Section, Table, Value
from . import plots
from .analysis import Analysis
from .exposure import exposure
from .milestones import Target


def section(analysis: Analysis, target: Target) -> Section:
    """Learning curves, and what an epoch is."""
    text = [
        "An epoch of the schedule is not a pass over the images where augmentation is repeated: it shows "
        "1 / `data.repeats` of them, each several times in different views, and other ones in the next epoch. Both "
        "axes are drawn: epochs, and different images seen with the views of them."
    ]
    columns = [
        Column("backbone"),
        Column("training images", ",d"),
        Column("different images an epoch", ",.0f"),
        Column("views of each", ".0f"),
        Column("views an epoch", ",.0f"),
        Column("steps an epoch", ",.0f"),
        Column("epochs", ",d"),
        Column("views in all, thousands", ",.1f"),
    ]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        result = arm.results[0]
        one = exposure(result.record, arm.experiment)
        shown: list[Value] = [one.images, one.distinct, one.repeats, one.views, one.steps]
        rows.append([arm.label, *shown, result.epoch, one.views * result.epoch / 1000])
    table = Table("shown", "What training showed, by the steps that it took", columns, rows)
    figures = [plots.over_epochs(analysis, target), plots.over_images(analysis), plots.losses(analysis)]
    return Section("curves", "Accuracy over epochs and images", text, tables=[table], figures=figures)
