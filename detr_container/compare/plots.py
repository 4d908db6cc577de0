"""The drawings of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from detr_container.measure.costs import Costs

from .analysis import Analysis, ArmResult
from .document import Figure, Range, Table
from .errors import KINDS
from .intervals import Interval, of_metric
from .precision import RECALLS
from .quality import BINS
from .results import SIZES, Pair, by_head
from .svg import INK, WIDTH, canvas, colour, empty, finish, hatch, horizontal_intervals, legend, listed, series_style

CURVES = {
    "ap": "AP, %",
    "loss": "training loss",
    "class": "classification loss",
    "l1": "L1 loss of boxes",
    "giou": "GIoU loss of boxes",
}
"""What learning curves are of: AP, the loss that is trained on, and its terms, those of the last decoder layer."""
LEAST_SHOWN = 10
"""A point of a calibration stands for at least so many detections."""


def series(analysis: Analysis) -> dict[str, int]:
    """The number of each backbone's series: the same in all drawings, whichever of the backbones they show."""
    return {name: number for number, name in enumerate(dict.fromkeys(arm.backbone for arm in analysis.arms))}


def _second_heads(analysis: Analysis) -> set[str]:
    """Heads whose marks are open where several heads are in one drawing."""
    return set(list(by_head(analysis.arms))[1::2])


def learning_curves(analysis: Analysis) -> list[Figure]:
    """CURVES over epochs, a drawing of each per head; thin lines are seeds, thick ones their mean."""
    drawings, place = [], series(analysis)
    # Heads innermost: two of them stand side by side.
    for what, title in CURVES.items():
        for number, (head, arms) in enumerate(by_head(analysis.arms).items(), start=1):
            with canvas(f"curves-{what}-{number}") as (figure, axes):
                ends = [_curves(axes, place[arm.backbone], arm, what) for arm in arms]
                axes.set(xlabel="epoch", ylabel=title)
                axes.set_xlim(left=0)
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                if what == "ap":
                    axes.set_ylim(bottom=0)
                if any(ends):
                    legend(figure, axes)
                else:
                    empty(axes, "nothing was recorded")
                caption = f"{head}: {title.removesuffix(', %')} over epochs."
                if any(len(arm.runs) > 1 for arm in arms):
                    caption += " Thin lines are seeds, thick ones their mean."
                alt = f"{head}, {title} over epochs. At the end: {listed([end for end in ends if end]) or 'nothing'}."
                drawings.append(finish(figure, f"curves-{what}-{number}", caption, alt))
    return drawings


def _curves(axes: Axes, index: int, arm: ArmResult, what: str) -> str:
    """Draw the curves of one arm; returns its name and last value."""
    curves = [_curve(record.evaluations if what == "ap" else record.metrics, what) for record in arm.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return ""
    for curve in curves if len(curves) > 1 else ():
        axes.plot(list(curve), list(curve.values()), color=colour(index), linewidth=0.7, alpha=0.7)
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        return ""
    mean = [float(np.mean([curve[epoch] for curve in curves])) for epoch in common]
    every = max(1, len(common) // 12)
    axes.plot(common, mean, markevery=every, label=arm.backbone, **series_style(index))
    return f"{arm.backbone} {mean[-1]:.3g}"


def _curve(rows: Sequence[Mapping[str, object]], key: str) -> dict[float, float]:
    """Value by epoch; losses are averaged over a hundredth of the curve, since they are of few images each."""
    known = [(row.get("epoch"), row.get(key, _term(row, key))) for row in rows]
    found = {float(x): float(y) for x, y in known if isinstance(x, int | float) and isinstance(y, int | float)}
    if key == "ap":
        return {epoch: 100 * value for epoch, value in found.items()}
    group = max(1, len(found) // 100)
    epochs, values = list(found), list(found.values())
    return {
        epochs[min(start + group, len(epochs)) - 1]: float(np.mean(values[start : start + group]))
        for start in range(0, len(epochs), group)
    }


def _term(row: Mapping[str, object], name: str) -> object:
    terms = row.get("losses")
    return terms.get(name) if isinstance(terms, Mapping) else None


def against(analysis: Analysis, name: str, costs: Mapping[str, float], label: str, caption: str) -> Figure:
    """AP with its interval against a cost. costs: by arm's label; label: of its axis."""
    shown = [arm for arm in analysis.evaluated if arm.label in costs]
    place, second_heads, values = series(analysis), _second_heads(analysis), []
    with canvas(f"ap-against-{name}") as (figure, axes):
        for arm in shown:
            interval = of_metric(arm.sample("ap"))
            x, y = costs[arm.label], 100 * interval.value
            second = arm.head in second_heads
            _draw_interval(axes, x, interval, place[arm.backbone], second, arm.label)
            values.append(f"{arm.label} {y:.1f} at {x:.3g}")
        axes.set(xlabel=label, ylabel="AP, %")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        if values:
            legend(figure, axes)
        else:
            empty(axes, "nothing is known of the cost")
        alt = f"AP against {label}: {listed(values) or 'nothing is known'}."
        return finish(figure, f"ap-against-{name}", caption, alt)


def gflops(costs: Mapping[str, Costs]) -> dict[str, float]:
    """GFLOPs by label."""
    return {label: cost.gflops.total for label, cost in costs.items()}


def _draw_interval(axes: Axes, x: float, interval: Interval, index: int, second: bool, label: str | None) -> None:
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


def forest(pairs: Sequence[Pair]) -> Figure:
    """Differences of AP with their intervals; filled marks are real."""
    rows = [(pair.name, 100 * pair.ap.value, 100 * pair.ap.low, 100 * pair.ap.high, pair.real) for pair in pairs]
    values = [f"{pair.name} {100 * pair.ap.value:+.1f}, {pair.verdict}" for pair in pairs]
    caption = "Differences of AP with 95 % intervals. Filled: real also when all are considered. Open: not."
    if not all(pair.ap.seeds for pair in pairs):
        caption += " With one seed a side, real of these runs only."
    return _differences("differences", rows, caption, f"Differences of AP: {'; '.join(values)}.")


def _differences(name: str, rows: Sequence[tuple[str, float, float, float, bool]], caption: str, alt: str) -> Figure:
    with canvas(name) as (figure, axes):
        height = horizontal_intervals(axes, rows)
        figure.set_size_inches(WIDTH, height + 0.6)
        axes.set_xlabel("difference of AP, points")
        axes.margins(x=0.05)
        return finish(figure, name, caption, alt)


def sizes(analysis: Analysis) -> Figure:
    """AP of small, medium and large objects with intervals."""
    arms, place, second_heads, texts = analysis.evaluated, series(analysis), _second_heads(analysis), []
    with canvas("sizes") as (figure, axes):
        for number, arm in enumerate(arms):
            offset = 0.8 * ((number + 0.5) / len(arms) - 0.5)
            values = [of_metric(arm.sample(name)) for name in SIZES]
            label: str | None = arm.label
            for x, one in enumerate(values):
                _draw_interval(axes, x + offset, one, place[arm.backbone], arm.head in second_heads, label)
                label = None if not math.isnan(one.value) else label
            listed_values = ", ".join("none" if math.isnan(one.value) else f"{100 * one.value:.1f}" for one in values)
            texts.append(f"{arm.label} {listed_values}")
        axes.set_xticks(range(len(SIZES)), list(SIZES.values()))
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.5, len(SIZES) - 0.5)
        axes.set_ylabel("AP, %")
        axes.grid(axis="x", visible=False)
        legend(figure, axes)
        caption = "AP by object size with 95 % intervals."
        return finish(figure, "sizes", caption, f"AP of small, medium and large objects: {'; '.join(texts)}.")


def class_differences(table: Table, pair: Pair, name: str) -> Figure:
    """The classes of a table of `results.by_class`, with their intervals."""
    rows = []
    for row in table.rows:
        apart = row[4]
        assert isinstance(apart, Range), "results.by_class has the difference there"
        rows.append((str(row[0]), apart.value, apart.low, apart.high, bool(row[5])))
    values = "; ".join(f"{one[0]} {one[1]:+.1f}" for one in rows)
    caption = f"{pair.name}, by class. Filled: real among all classes. Open: not."
    if not pair.ap.seeds:
        caption += " With one seed a side, real of these runs only."
    return _differences(name, rows, caption, f"{pair.name}, difference of AP by class: {values}.")


def errors(analysis: Analysis) -> list[Figure]:
    """What each kind of error costs, mean over seeds, a drawing per head on one scale."""
    drawings, place, values = [], series(analysis), {}
    for arm in analysis.evaluated:
        costs = [[one.errors.cost[kind] for kind in KINDS] for one in arm.results]
        values[arm.label] = 100 * np.mean(costs, axis=0)
    most = max((float(one.max()) for one in values.values()), default=0.0)
    for number, (head, arms) in enumerate(by_head(analysis.evaluated).items(), start=1):
        height, texts = 0.8 / len(arms), []
        with canvas(f"errors-{number}", height=0.6 + len(KINDS) * (0.1 + 0.15 * len(arms))) as (figure, axes):
            for row, arm in enumerate(arms):
                lost, backbone = values[arm.label], arm.backbone
                at = np.arange(len(KINDS)) + (row - (len(arms) - 1) / 2) * height
                axes.barh(at, lost, 0.85 * height, label=backbone, **hatch(place[backbone]))
                texts.append(f"{backbone}: " + ", ".join(f"{k} {v:.1f}" for k, v in zip(KINDS, lost, strict=True)))
            axes.set_yticks(range(len(KINDS)), list(KINDS))
            axes.invert_yaxis()
            axes.set(xlabel="points of AP50", xlim=(0, max(1.0, 1.05 * most)))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            legend(figure, axes)
            caption = f"{head}: points of AP50 that each kind of error costs (TIDE), mean over seeds."
            alt = f"{head}, points of AP50 lost to each kind of error. {'; '.join(texts)}."
            drawings.append(finish(figure, f"errors-{number}", caption, alt))
    return drawings


def precision_recall(analysis: Analysis) -> list[Figure]:
    """Precision against recall at IoU 0.5 and 0.75, a drawing per head."""
    drawings, place = [], series(analysis)
    for number, (head, arms) in enumerate(by_head(analysis.evaluated).items(), start=1):
        with canvas(f"precision-{number}") as (figure, axes):
            values = []
            for arm in arms:
                index = place[arm.backbone]
                curves = 100 * np.mean([one.precision for one in arm.results], axis=0)
                # Marks of one curve stand between those of the others.
                style = {**series_style(index), "markevery": (4 * index % 20, 20)}
                axes.plot(100 * RECALLS, _until_zero(curves[0]), label=arm.backbone, **style)
                axes.plot(100 * RECALLS, _until_zero(curves[1]), **{**style, "linewidth": 0.7, "markersize": 3})
                values.append(f"{arm.backbone} {curves[0].mean():.1f} and {curves[1].mean():.1f}")
            axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 101))
            legend(figure, axes)
            caption = f"{head}: precision against recall, mean over classes and seeds; thick at IoU 0.5, thin at 0.75."
            alt = f"{head}, precision against recall. Areas under the curves at IoU 0.5 and 0.75: {listed(values)}."
            drawings.append(finish(figure, f"precision-{number}", caption, alt))
    return drawings


def _until_zero(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve without the part where it stays zero, along which all lie on one another."""
    known = np.flatnonzero(curve > 0)
    return np.where(np.arange(len(curve)) <= (known[-1] + 1 if len(known) else 0), curve, np.nan)


def reliability(analysis: Analysis) -> list[Figure]:
    """How often detections of a score are right, a drawing per head."""
    drawings, place = [], series(analysis)
    for number, (head, arms) in enumerate(by_head(analysis.evaluated).items(), start=1):
        with canvas(f"calibration-{number}") as (figure, axes):
            axes.plot([0, 1], [0, 1], color=INK, linewidth=1)
            values = []
            for arm in arms:
                rows = [one.calibration for one in arm.results]
                count = np.sum([row.count for row in rows], axis=0)
                shown = count >= LEAST_SHOWN
                with np.errstate(invalid="ignore"):
                    x, y = (
                        np.sum([np.nan_to_num(part) * row.count for part, row in zip(parts, rows, strict=True)], axis=0)
                        / count
                        for parts in ([row.score for row in rows], [row.right for row in rows])
                    )
                style = series_style(place[arm.backbone])
                axes.plot(x[shown], y[shown], label=arm.backbone, clip_on=False, zorder=3, **style)
                values.append(f"{arm.backbone} {np.mean([row.error for row in rows]):.3f}")
            axes.set(xlabel="mean score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
            legend(figure, axes)
            caption = (
                f"{head}: detections in {BINS} bins of score (those with {LEAST_SHOWN} or more), and how many of them "
                "are right at IoU 0.5. On the line, scores are right as often as they state."
            )
            drawings.append(
                finish(figure, f"calibration-{number}", caption, f"{head}, calibration error: {listed(values)}.")
            )
    return drawings
