"""The sections of a report of detectors: what differs, how they learnt, their errors, scores and images.

Where runs have masks, what is said of boxes is said of them, too, in tables and drawings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import drawings, plots, ranking, results
from .analysis import Analysis, ArmResult, MaskArm
from .classes import classes
from .disagreement import sheets
from .document import Column, Section, Table, Value
from .errors import KINDS
from .ranking import Pair

Pairs = Sequence[Pair[ArmResult]]
MaskPairs = Sequence[Pair[MaskArm]]
"""Of the arms that have masks."""
_OF_PYRAMIDS = "That of RetinaNet and Mask R-CNN is the sum of its terms, which are detectron2's."


def differences(analysis: Analysis, pairs: Pairs, by_masks: MaskPairs) -> Section:
    """Every difference with its interval, of boxes and of masks."""
    images = len(analysis.ground.images)
    section = ranking.differences(pairs, ("AP", "AP50", "AP75"), images, analysis.resamples)
    figures = [drawings.forest(pairs, "AP")] if pairs else []
    if not by_masks:
        return replace(section, figures=figures)
    titles = ("mask AP", "mask AP50", "mask AP75")
    table = ranking.difference_table(by_masks, titles, "mask-differences", "Pairs, by masks")
    figures.append(drawings.forest(by_masks, "mask AP", "mask-differences"))
    text = (
        "Mask AP has a table of its own, with the pairs of which both sides find masks; its last column considers its "
        "rows together."
    )
    return replace(section, text=[*section.text, text], tables=[*section.tables, table], figures=figures)


def sizes(analysis: Analysis, pairs: Pairs, by_masks: MaskPairs) -> Section:
    """Metrics by the size of objects."""
    figures = [plots.sizes(analysis, analysis.evaluated)]
    text = []
    if analysis.by_masks:
        figures.append(plots.sizes(analysis, analysis.by_masks, "mask AP", "mask-sizes"))
        text = [
            "Objects are as large as the annotation file says, detections as their box or, for mask AP, their mask."
        ]
    return Section("sizes", "By object size", text, tables=results.by_size(analysis, pairs, by_masks), figures=figures)


def by_class(analysis: Analysis, pairs: Pairs, by_masks: MaskPairs) -> list[Section]:
    """Which classes gain and lose, by boxes and where there are any by masks."""
    ground = analysis.ground
    counts = np.bincount(ground.label[~ground.crowd], minlength=len(ground.names))
    found = [classes(pairs, ground.names, counts, "objects", "AP")]
    if by_masks:
        heading = "By class, masks"
        found.append(classes(by_masks, ground.names, counts, "objects", "mask AP", "mask-classes", heading))
    return found


def curves(analysis: Analysis) -> Section:
    """How the runs got where they are."""
    anchors = [arm.experiment.anchors for arm in analysis.arms]
    text = []
    if not all(anchors):
        who = " of DETR and SMCA-DETR" if any(anchors) else ""
        text.append(
            f"The training loss{who} is summed over decoder layers, with the loss's weights; its terms are the last "
            "layer's, without them."
        )
    if any(anchors):
        text.append(_OF_PYRAMIDS)
    text.append("Totals and classification losses of different heads are not comparable.")
    return Section("curves", "Learning curves", [" ".join(text)], figures=plots.learning_curves(analysis))


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
    if analysis.by_masks:
        text.append(
            "This section, the next two (precision and recall, calibration) and the AP of single images are of boxes, "
            "also of detectors that find masks."
        )
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
    if analysis.by_masks:
        text.append("Masks are drawn where a model finds them; the AP of an image is that of its boxes.")
    return Section("images", "Where the models disagree", [*text, trouble] if trouble else text, figures=drawings)
