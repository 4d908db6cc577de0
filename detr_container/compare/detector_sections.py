"""The sections of a report of detectors that explain the result: how they learnt, their errors, scores and images."""

from __future__ import annotations

from . import plots
from .analysis import Analysis
from .disagreement import sheets
from .document import Column, Section, Table, Value
from .errors import KINDS


def curves(analysis: Analysis) -> Section:
    """How the runs got where they are."""
    text = [
        "The training loss is summed over decoder layers, with the loss's weights; its terms are the last layer's, "
        "without them. Totals and classification losses of different heads are not comparable."
    ]
    return Section("curves", "Learning curves", text, figures=plots.learning_curves(analysis))


def error_kinds(analysis: Analysis) -> Section:
    """What is lost to each kind of error."""
    columns = [Column("backbone"), Column("head"), *(Column(kind, ".2f") for kind in KINDS)]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        lost = [100 * sum(one.errors.cost[kind] for one in arm.results) / len(arm.results) for kind in KINDS]
        rows.append([arm.backbone, arm.head, *lost])
    text = [
        "By how many points AP50 would rise if only errors of one kind were fixed (TIDE, Bolya et al. 2020; IoU 0.5, "
        "background below 0.1), mean over seeds."
    ]
    table = Table("errors", "Points of AP50 lost to each kind of error", columns, rows)
    return Section("errors", "Kinds of errors", text, tables=[table], figures=plots.errors(analysis))


def calibration(analysis: Analysis) -> Section:
    """Whether scores mean what they say."""
    columns = [Column("backbone"), Column("head"), Column("calibration error", ".3f"), Column("detections", ",d")]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        each = [one.calibration for one in arm.results]
        count = sum(int(one.count.sum()) for one in each)
        rows.append([arm.backbone, arm.head, sum(one.error for one in each) / len(each), count])
    text = [
        "Whether a score means what it says: the mean distance between score and share of right detections, over ten "
        "bins of score weighted by their detections. Most detections have low scores, and weigh accordingly."
    ]
    table = Table("calibration", "Calibration of scores", columns, rows)
    return Section("calibration", "Calibration", text, tables=[table], figures=plots.reliability(analysis))


def images(analysis: Analysis) -> Section:
    """The images on which the models are furthest apart."""
    drawings, trouble = sheets(analysis)
    text = [
        "Images of the largest range of the image's own AP between the models (mean over seeds; classes pooled). "
        "Boxes are the surest of each model's first seed, as many as the image has objects."
    ]
    return Section("images", "Where the models disagree", [*text, trouble] if trouble else text, figures=drawings)
