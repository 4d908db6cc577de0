"""The drawings that a report of any task has: differences, and a metric against what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from detr_container.config.settings import Metric
from detr_container.measure.costs import Costs

from .compared import Compared, R
from .document import Figure, Range, Table
from .intervals import Interval, of_metric
from .quality import Calibration
from .ranking import Pair, by_head
from .svg import INK, WIDTH, canvas, colour, empty, finish, horizontal_intervals, legend, listed, series_style

LEAST_SHOWN = 10
"""A point of a calibration stands for at least so many scores."""


def series(arms: Sequence[R]) -> dict[str, int]:
    """The number of each backbone's series: the same in all drawings, whichever of the backbones they show."""
    return {name: number for number, name in enumerate(dict.fromkeys(arm.backbone for arm in arms))}


def second_heads(arms: Sequence[R]) -> set[str]:
    """Heads whose marks are open where several heads are in one drawing."""
    return set(list(by_head(arms))[1::2])


def against(
    analysis: Compared[R], metric: Metric, name: str, costs: Mapping[str, float], label: str, caption: str
) -> Figure:
    """A metric with its interval against a cost. costs: by arm's label; label: of its axis."""
    shown = [arm for arm in analysis.evaluated if arm.label in costs]
    place, others, values = series(analysis.arms), second_heads(analysis.arms), list[str]()
    with canvas(f"{metric.key}-against-{name}") as (figure, axes):
        for arm in shown:
            interval = of_metric(arm.sample(metric.key))
            x, y = costs[arm.label], 100 * interval.value
            second = arm.head in others
            draw_interval(axes, x, interval, place[arm.backbone], second, arm.label)
            values.append(f"{arm.label} {y:.1f} at {x:.3g}")
        axes.set(xlabel=label, ylabel=f"{metric.label}, %")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        if values:
            legend(figure, axes)
        else:
            empty(axes, "nothing is known of the cost")
        alt = f"{metric.label} against {label}: {listed(values) or 'nothing is known'}."
        return finish(figure, f"{metric.key}-against-{name}", caption, alt)


def gflops(costs: Mapping[str, Costs]) -> dict[str, float]:
    """GFLOPs by label."""
    return {label: cost.gflops.total for label, cost in costs.items()}


def draw_interval(axes: Axes, x: float, interval: Interval, index: int, second: bool, label: str | None) -> None:
    """A value and its interval in per cent, upright at x; second: an open mark on a broken line."""
    if math.isnan(interval.value):
        return
    y = 100 * interval.value
    if not math.isnan(interval.low):
        reach = [[min(y - 100 * interval.low, y)], [100 * interval.high - y]]
        bars = axes.errorbar([x], [y], yerr=reach, fmt="none", ecolor=colour(index), elinewidth=1.2, capsize=3)
        bars[2][0].set_linestyle("--" if second else "-")
        for cap in bars[1]:
            cap.set_markerfacecolor(colour(index))
    style = {**series_style(index, line=False, filled=not second), "markersize": 7, "zorder": 3}
    # A mark on the frame is shown whole.
    axes.plot([x], [y], label=label, clip_on=False, **style)


def forest(pairs: Sequence[Pair[R]], title: str, name: str = "differences") -> Figure:
    """Differences of the headline metric with their intervals; filled marks are real. name: the drawing's."""
    rows = [(pair.name, 100 * pair.main.value, 100 * pair.main.low, 100 * pair.main.high, pair.real) for pair in pairs]
    values = [f"{pair.name} {100 * pair.main.value:+.1f}, {pair.verdict}" for pair in pairs]
    caption = f"Differences of {title} with 95 % intervals. Filled: real also when all are considered. Open: not."
    if not all(pair.main.seeds for pair in pairs):
        caption += " With one seed a side, real of these runs only."
    return differences(name, rows, title, caption, f"Differences of {title}: {'; '.join(values)}.")


def differences(
    name: str, rows: Sequence[tuple[str, float, float, float, bool]], title: str, caption: str, alt: str
) -> Figure:
    """Differences of a metric. rows: name, value, low, high and whether it is real; title: the metric's."""
    with canvas(name) as (figure, axes):
        height = horizontal_intervals(axes, rows)
        figure.set_size_inches(WIDTH, height + 0.6)
        axes.set_xlabel(f"difference of {title}, points")
        axes.margins(x=0.05)
        return finish(figure, name, caption, alt)


def class_differences(table: Table, pair: Pair[R], title: str) -> Figure:
    """The classes of a table of class differences, with their intervals."""
    rows = []
    for row in table.rows:
        apart = row[4]
        assert isinstance(apart, Range), "tables of classes have the difference there"
        rows.append((str(row[0]), apart.value, apart.low, apart.high, bool(row[5])))
    values = "; ".join(f"{one[0]} {one[1]:+.1f}" for one in rows)
    caption = f"{pair.name}, by class. Filled: real among all classes. Open: not."
    if not pair.main.seeds:
        caption += " With one seed a side, real of these runs only."
    return differences(table.name, rows, title, caption, f"{pair.name}, difference of {title} by class: {values}.")


def calibrations(
    name: str, rows: Mapping[str, Sequence[Calibration]], place: Mapping[str, int], label: str, caption: str, who: str
) -> Figure:
    """How often what has a score is right. rows: of each backbone, its seeds'; label: of scores; who: has them all."""
    with canvas(name) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1)
        values = []
        for backbone, each in rows.items():
            count = np.sum([row.count for row in each], axis=0)
            shown = count >= LEAST_SHOWN
            with np.errstate(invalid="ignore"):
                x, y = (
                    np.sum([np.nan_to_num(part) * row.count for part, row in zip(parts, each, strict=True)], axis=0)
                    / count
                    for parts in ([row.score for row in each], [row.right for row in each])
                )
            style = series_style(place[backbone])
            axes.plot(x[shown], y[shown], label=backbone, clip_on=False, zorder=3, **style)
            values.append(f"{backbone} {np.mean([row.error for row in each]):.3f}")
        axes.set(xlabel=label, ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
        legend(figure, axes)
        return finish(figure, name, caption, f"{who}, calibration error: {listed(values)}.")
