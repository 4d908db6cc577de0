"""What classifiers take for what, and how sure they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..document import Column, Section, Table, Value, span
from ..intervals import of_metric
from . import plots
from .analysis import Analysis, ArmResult

MOST_PAIRS = 12
MOST_CLASSES = 20
"""Classes of which all are shown; of more, the hardest so many."""


def confusions(analysis: Analysis) -> Section:
    """The classes that are most often taken for another one."""
    truth, arms = analysis.truth, analysis.evaluated
    counts, images = [_confused(arm, analysis) for arm in arms], truth.counts()
    total = dict[int, float]()
    for each in counts:
        for code, count in each.items():
            total[code] = total.get(code, 0.0) + count / len(arms)
    # Of equal ones, whose sums may be rounded differently, the first class first.
    order = sorted(total, key=lambda code: (-round(total[code], 9), code))[:MOST_PAIRS]
    columns = [Column("true class"), Column("taken for"), Column("images", ",d"), *(Column(arm.label) for arm in arms)]
    rows: list[list[Value]] = []
    for code in order:
        true, taken = divmod(code, len(truth.names))
        shares: list[Value] = [100 * each.get(code, 0.0) / images[true] for each in counts]
        rows.append([truth.told[true], truth.told[taken], int(images[true]), *shares])
    text = [
        "Per cent of the images of a class that are taken for one other class, mean over seeds. These are the pairs "
        "with most such images, over all backbones."
    ]
    if not rows:
        return Section("confusions", "What is taken for what", ["No image is taken for another class by any run."])
    table = Table("confusions", "The most frequent mistakes", columns, rows)
    return Section("confusions", "What is taken for what", text, tables=[table])


def _confused(arm: ArmResult, analysis: Analysis) -> dict[int, float]:
    """How many images of class t are taken for class p, by t K + p, mean over the arm's seeds."""
    labels, found = analysis.truth.labels, dict[int, float]()
    for one in arm.results:
        wrong = ~one.right
        codes, counts = np.unique(labels[wrong] * len(analysis.truth.names) + one.guess[wrong, 0], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            found[code] = found.get(code, 0.0) + count / len(arm.results)
    return found


def by_class(analysis: Analysis) -> Table:
    """Top-1 of every class, or of the hardest, with intervals."""
    truth, arms = analysis.truth, analysis.evaluated
    images = truth.counts()
    present = np.flatnonzero(images).tolist()
    means = {k: float(np.mean([arm.class_sample(k).mean for arm in arms])) for k in present}
    shown = sorted(present, key=lambda k: means[k])[:MOST_CLASSES] if len(present) > MOST_CLASSES else present
    columns = [Column("class"), Column("images", ",d"), *(Column(arm.label) for arm in arms)]
    rows: list[list[Value]] = [
        [truth.told[k], int(images[k]), *(span(of_metric(arm.class_sample(k))) for arm in arms)] for k in shown
    ]
    which = f"the hardest {len(shown)} of {len(present)} classes" if len(shown) < len(present) else "every class"
    return Table("class-accuracy", f"Top-1 of {which}, with 95 % intervals", columns, rows)


def calibration(analysis: Analysis) -> Section:
    """Whether a confidence means what it says."""
    columns = [Column("backbone"), Column("calibration error", ".3f"), Column("mean confidence", ".3f")]
    columns += [Column("share that is right", ".3f"), Column("log loss", ".3f")]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        each = arm.results
        error, right = np.mean([one.calibration.error for one in each]), np.mean([one.headline for one in each])
        sure, loss = np.mean([one.probability[:, 0].mean() for one in each]), np.mean([one.log_loss for one in each])
        rows.append([arm.label, *map(float, (error, sure, right, loss))])
    text = [
        "Whether a confidence means what it says: the mean distance between the probability of the surest class and "
        "the share that is right, over ten bins weighted by their images; mean over seeds. Log loss is the mean of "
        "\N{MINUS SIGN}log of the true class's probability. Label smoothing and mixing in training make a network less "
        "sure than it is right."
    ]
    table = Table("calibration", "Calibration of confidence", columns, rows)
    return Section("calibration", "Calibration", text, tables=[table], figures=[plots.reliability(analysis)])


def disagreement(analysis: Analysis) -> NDArray[np.float64]:
    """How far apart the arms are on each image [N]: the range of the true class's probability, mean over seeds."""
    sure = np.stack([_true_probability(arm) for arm in analysis.evaluated])
    return np.asarray(sure.max(axis=0) - sure.min(axis=0))


def _true_probability(arm: ArmResult) -> NDArray[np.float64]:
    return np.asarray(np.mean([one.true_probability for one in arm.results], axis=0, dtype=np.float64))
