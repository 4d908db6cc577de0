"""The drawings of a report of classifiers: accuracy over epochs and over images, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ..document import Figure
from ..drawings import LEAST_SHOWN, calibrations, series
from ..quality import BINS
from ..reading import RunRecord
from ..svg import INK, canvas, colour, empty, finish, legend, listed, series_style
from .analysis import Analysis, ArmResult
from .exposure import exposure
from .milestones import Target, curve_of

Curve = Mapping[float, float]
_BAND = 0.18
"""Opacity of what lies between the seeds."""


def over_epochs(analysis: Analysis, target: Target) -> Figure:
    """Top-1 over the epochs of the schedule."""
    caption = "Top-1 over epochs of the schedule: the mean over seeds, in a band from the lowest seed to the highest."
    caption += f" The line across is at {100 * target.accuracy:.1f} %."
    with canvas("top1-epochs") as (figure, axes):
        ends = _lines(axes, analysis, _accuracy, lambda arm, epoch: epoch)
        axes.axhline(100 * target.accuracy, color=INK, linewidth=1)
        axes.set(xlabel="epoch", ylabel="top-1, %")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        return _finished(figure, axes, ends, "top1-epochs", caption, "Top-1 over epochs")


def over_images(analysis: Analysis) -> Figure:
    """Top-1 over the images that were shown, epoch by epoch; their views on a second axis where it is one for all."""
    shown = {arm.label: exposure(arm.results[0].record, arm.experiment) for arm in analysis.evaluated}
    most = max(shown[arm.label].distinct * arm.results[0].epoch for arm in analysis.evaluated)
    power = 2 if most >= 2e6 else 1 if most >= 2e3 else 0
    unit, word = 1000**power, ("", ", thousands", ", millions")[power]
    repeats = {one.repeats for one in shown.values()}
    caption = "Top-1 over images seen, summed over epochs: those of an epoch are different ones."
    with canvas("top1-images") as (figure, axes):
        ends = _lines(axes, analysis, _accuracy, lambda arm, epoch: shown[arm.label].distinct * epoch / unit)
        axes.set(xlabel=f"different images seen{word}", ylabel="top-1, %")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if len(repeats) == 1 and repeats != {1.0}:
            (times,) = repeats
            both = (lambda x: np.asarray(x, dtype=float) * times, lambda x: np.asarray(x, dtype=float) / times)
            above = axes.secondary_xaxis("top", functions=both)
            above.set_xlabel(f"views{word}")
            above.xaxis.set_major_locator(MaxNLocator(6))
            caption += (
                f" Each is seen {times:g} times in its epoch (repeated augmentation): views are on the upper axis."
            )
        elif len(repeats) > 1:
            caption += " How often each is seen in its epoch differs between the backbones: the table says how often."
        else:
            caption += " Each is seen once in its epoch: as many views."
        return _finished(figure, axes, ends, "top1-images", caption, "Top-1 over images seen")


def losses(analysis: Analysis) -> Figure:
    """The training loss over epochs."""
    caption = (
        "Training loss over epochs, in a band from the lowest seed to the highest. It is of mixed images and smoothed "
        "labels where the recipe has them, and so stays far from zero."
    )
    with canvas("loss-epochs") as (figure, axes):
        ends = _lines(axes, analysis, _loss, lambda arm, epoch: epoch)
        axes.set(xlabel="epoch", ylabel="training loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(left=0)
        return _finished(figure, axes, ends, "loss-epochs", caption, "Training loss over epochs")


def _accuracy(record: RunRecord) -> Curve:
    return {epoch: 100 * value for epoch, value in curve_of(record).items()}


def _loss(record: RunRecord) -> Curve:
    """By epoch, the mean of its lines of metrics."""
    groups: dict[float, list[float]] = {}
    for row in record.metrics:
        if isinstance(row.get("loss"), int | float):
            groups.setdefault(float(np.ceil(row["epoch"])), []).append(row["loss"])
    return {epoch: float(np.mean(values)) for epoch, values in groups.items()}


def _lines(
    axes: Axes, analysis: Analysis, curve: Callable[[RunRecord], Curve], at: Callable[[ArmResult, float], float]
) -> list[str]:
    """A line for each arm in its band; at: where an epoch of an arm lies. Returns names with their last values."""
    place, ends = series(analysis.arms), []
    for arm in analysis.evaluated:
        curves = [curve(result.record) for result in arm.results]
        common = sorted(set.intersection(*(set(each) for each in curves)))
        if not common:
            continue
        values = np.array([[each[epoch] for epoch in common] for each in curves])
        x, index = [at(arm, epoch) for epoch in common], place[arm.backbone]
        if len(curves) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(x, low, high, color=colour(index), alpha=_BAND, linewidth=0)
        every = max(1, len(common) // 12)
        style = {**series_style(index), "markevery": every}
        mean = values.mean(axis=0)
        axes.plot(x, mean, label=arm.label, **style)
        ends.append(f"{arm.label} {mean[-1]:.3g}")
    return ends


def _finished(figure: Canvas, axes: Axes, ends: Sequence[str], name: str, caption: str, what: str) -> Figure:
    if ends:
        legend(figure, axes)
    else:
        empty(axes, "nothing was recorded")
    return finish(figure, name, caption, f"{what}. At the end: {listed(ends) or 'nothing'}.")


def reliability(analysis: Analysis) -> Figure:
    """How often predictions of a confidence are right."""
    rows = {arm.backbone: [one.calibration for one in arm.results] for arm in analysis.evaluated}
    caption = (
        f"Images in {BINS} bins of confidence (those with {LEAST_SHOWN} or more), and how many of them are classified "
        "right. On the line, confidence is as often right as it states; below it, less often."
    )
    return calibrations("calibration", rows, series(analysis.arms), "mean confidence", caption, "Classifiers")
