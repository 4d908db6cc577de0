"""The drawings of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from detr_container.costs import Costs

from .analysis import Analysis, CellResult
from .document import Figure, Table
from .drawing import HEIGHT, WIDTH, canvas, colour, finish, legend, listed, look, nothing
from .errors import KINDS
from .intervals import of_figure
from .precision import RECALLS
from .quality import BINS
from .results import SIZES, Pair, by_head

LEAST_SHOWN = 10
"""A point of a calibration stands for at least so many detections."""


def learning_curves(analysis: Analysis) -> list[Figure]:
    """AP and loss over epochs, a drawing of each per head; thin lines are seeds, thick ones their mean."""
    drawings = []
    for number, (head, cells) in enumerate(by_head(analysis.cells).items(), start=1):
        for what, title in (("ap", "AP, %"), ("loss", "training loss")):
            with canvas(f"curves-{what}-{number}") as (figure, axes):
                ends = [_curves(axes, index, cell, what) for index, cell in enumerate(cells)]
                axes.set(xlabel="epoch", ylabel=title)
                axes.set_xlim(left=0)
                if what == "ap":
                    axes.set_ylim(bottom=0)
                if any(ends):
                    legend(figure, axes)
                else:
                    nothing(axes, "nothing was recorded")
                caption = (
                    f"{head}: {title.removesuffix(', %')} over epochs. Thin lines are seeds, thick ones their mean."
                )
                alt = f"{head}, {title} over epochs. At the end: {listed([end for end in ends if end]) or 'nothing'}."
                drawings.append(finish(figure, f"curves-{what}-{number}", caption, alt))
    return drawings


def _curves(axes: Axes, index: int, cell: CellResult, what: str) -> str:
    """Draw the curves of one cell; returns its name and last value."""
    curves = [_curve(record.evaluations if what == "ap" else record.metrics, what) for record in cell.cell.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return ""
    for curve in curves if len(curves) > 1 else ():
        axes.plot(list(curve), list(curve.values()), color=colour(index), linewidth=0.7, alpha=0.6)
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        return ""
    mean = [float(np.mean([curve[epoch] for curve in curves])) for epoch in common]
    every = max(1, len(common) // 12)
    axes.plot(common, mean, markevery=every, label=cell.cell.backbone, **look(index))
    return f"{cell.cell.backbone} {mean[-1]:.3g}"


def _curve(rows: Sequence[Mapping[str, object]], key: str) -> dict[float, float]:
    """Value by epoch; losses are averaged over a hundredth of the curve, since they are of few pictures each."""
    known = [(row.get("epoch"), row.get(key)) for row in rows]
    found = {float(x): float(y) for x, y in known if isinstance(x, int | float) and isinstance(y, int | float)}
    if key == "ap":
        return {epoch: 100 * value for epoch, value in found.items()}
    group = max(1, len(found) // 100)
    epochs, values = list(found), list(found.values())
    return {
        epochs[min(start + group, len(epochs)) - 1]: float(np.mean(values[start : start + group]))
        for start in range(0, len(epochs), group)
    }


def against(analysis: Analysis, name: str, costs: Mapping[str, float], label: str, told: str) -> Figure:
    """AP with its interval against a cost. costs: by cell's label; told: the caption."""
    shown = [cell for cell in analysis.judged if cell.cell.label in costs]
    names = list(dict.fromkeys(cell.cell.backbone for cell in shown))
    said = []
    with canvas(f"ap-against-{name}") as (figure, axes):
        for cell in shown:
            index, heads = names.index(cell.cell.backbone), list(by_head(shown))
            interval = of_figure(cell.sample("ap"))
            x, y = costs[cell.cell.label], 100 * interval.value
            reach = 0.0 if math.isnan(interval.low) else 100 * (interval.high - interval.value)
            filled = "none" if heads.index(cell.cell.head) % 2 else colour(index)
            style = {**look(index, line=False), "markerfacecolor": filled, "markersize": 8}
            axes.errorbar([x], [y], yerr=[[min(reach, y)], [reach]], capsize=3, label=cell.cell.label, **style)
            said.append(f"{cell.cell.label} {y:.1f} at {x:.3g}")
        axes.set(xlabel=label, ylabel="AP, %")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        if said:
            legend(figure, axes)
        else:
            nothing(axes, "nothing is known of the cost")
        alt = f"AP against {label}: {listed(said) or 'nothing is known'}."
        return finish(figure, f"ap-against-{name}", told, alt)


def gflops(costs: Mapping[str, Costs]) -> dict[str, float]:
    """GFLOPs by label."""
    return {label: cost.gflops.total for label, cost in costs.items()}


def forest(pairs: Sequence[Pair]) -> Figure:
    """Differences of AP with their intervals; filled marks are real."""
    with canvas("differences", 2 * WIDTH, 1.2 + 0.36 * len(pairs)) as (figure, axes):
        for row, pair in enumerate(reversed(pairs)):
            _range(axes, row, pair.ap.value, pair.ap.low, pair.ap.high, pair.real)
        axes.set_yticks(range(len(pairs)), [pair.name for pair in reversed(pairs)])
        axes.axvline(0, color="#101112", linewidth=1)
        axes.set_xlabel("difference of AP, points")
        axes.set_ylim(-0.7, len(pairs) - 0.3)
        axes.grid(axis="y", visible=False)
        said = [f"{pair.name} {100 * pair.ap.value:+.1f}, {pair.verdict}" for pair in pairs]
        caption = "Differences of AP with 95 % intervals. Filled: real also when all are looked at. Open: not."
        return finish(figure, "differences", caption, f"Differences of AP: {'; '.join(said)}.", wide=True)


def _range(axes: Axes, row: float, value: float, low: float, high: float, real: bool, index: int = 0) -> None:
    """A value and its interval in per cent, lying."""
    if not math.isnan(low):
        axes.plot([100 * low, 100 * high], [row, row], color=colour(index), linewidth=2)
    filled = colour(index) if real else "none"
    axes.plot([100 * value], [row], **{**look(index, line=False), "markerfacecolor": filled}, markersize=8)


def sizes(analysis: Analysis) -> Figure:
    """AP of small, medium and large objects with intervals."""
    cells = analysis.judged
    names, said = list(dict.fromkeys(cell.cell.backbone for cell in cells)), []
    with canvas("sizes") as (figure, axes):
        for place, cell in enumerate(cells):
            index = names.index(cell.cell.backbone)
            second = list(by_head(cells)).index(cell.cell.head) % 2
            offset = 0.7 * ((place + 0.5) / len(cells) - 0.5)
            style = {**look(index, line=False), "markerfacecolor": "none" if second else colour(index)}
            values = [of_figure(cell.sample(name)) for name in SIZES]
            for x, one in enumerate(values):
                if not math.isnan(one.value):
                    reach = [[100 * min(one.value - one.low, one.value)], [100 * (one.high - one.value)]]
                    label = cell.cell.label if not x else None
                    axes.errorbar([x + offset], [100 * one.value], yerr=np.nan_to_num(reach), label=label, **style)
            listed_values = ", ".join("none" if math.isnan(one.value) else f"{100 * one.value:.1f}" for one in values)
            said.append(f"{cell.cell.label} {listed_values}")
        axes.set_xticks(range(len(SIZES)), list(SIZES.values()))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("AP, %")
        axes.grid(axis="x", visible=False)
        legend(figure, axes)
        caption = "AP by object size with 95 % intervals."
        return finish(figure, "sizes", caption, f"AP of small, medium and large objects: {'; '.join(said)}.")


def class_differences(table: Table, pair: Pair, name: str) -> Figure:
    """The classes of a table of `results.by_class`, with their intervals."""
    rows = list(reversed(table.rows))
    with canvas(name, WIDTH, 1.1 + 0.3 * len(rows)) as (figure, axes):
        for place, row in enumerate(rows):
            apart = row[4]
            _range(axes, place, apart.value / 100, apart.low / 100, apart.high / 100, bool(row[5]))  # type: ignore[union-attr]
        axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows])
        axes.axvline(0, color="#101112", linewidth=1)
        axes.set_xlabel("difference of AP, points")
        axes.grid(axis="y", visible=False)
        told = "; ".join(f"{row[0]} {row[4].value:+.1f}" for row in table.rows)  # type: ignore[union-attr]
        caption = f"{pair.name}. Filled: real among all classes. Open: not."
        return finish(figure, name, caption, f"{pair.name}, AP by class: {told}.")


def errors(analysis: Analysis) -> Figure:
    """What each kind of error costs, mean over seeds."""
    cells = analysis.judged
    names = list(dict.fromkeys(cell.cell.backbone for cell in cells))
    height = 0.8 / max(1, len(cells))
    said = []
    with canvas("errors", 2 * WIDTH, 1.2 + 0.16 * len(KINDS) * (len(cells) + 1)) as (figure, axes):
        for place, cell in enumerate(cells):
            values = [100 * float(np.mean([one.errors.cost[kind] for one in cell.results])) for kind in KINDS]
            second = list(by_head(cells)).index(cell.cell.head) % 2
            index = names.index(cell.cell.backbone)
            at = np.arange(len(KINDS)) + (place - (len(cells) - 1) / 2) * height
            axes.barh(
                at,
                values,
                0.9 * height,
                label=cell.cell.label,
                facecolor="none" if second else colour(index),
                edgecolor=colour(index),
                hatch=("////" if index % 2 else "....") if second else None,
            )
            said.append(f"{cell.cell.label}: " + ", ".join(f"{k} {v:.1f}" for k, v in zip(KINDS, values, strict=True)))
        axes.set_yticks(range(len(KINDS)), list(KINDS))
        axes.invert_yaxis()
        axes.set_xlabel("points of AP50 that rise when only this kind is mended")
        axes.grid(axis="y", visible=False)
        legend(figure, axes)
        caption = "What each kind of error costs (TIDE), mean over seeds."
        return finish(
            figure, "errors", caption, f"Points of AP50 lost to each kind of error. {'; '.join(said)}.", wide=True
        )


def precision_recall(analysis: Analysis) -> list[Figure]:
    """Precision against recall at IoU 0.5 and 0.75, a drawing per head."""
    drawings = []
    for number, (head, cells) in enumerate(by_head(analysis.judged).items(), start=1):
        with canvas(f"precision-{number}") as (figure, axes):
            said = []
            for index, cell in enumerate(cells):
                curves = 100 * np.mean([one.precision for one in cell.results], axis=0)
                style = look(index)
                axes.plot(100 * RECALLS, curves[0], label=cell.cell.backbone, markevery=20, **style)
                axes.plot(100 * RECALLS, curves[1], markevery=20, **{**style, "linewidth": 0.9, "markersize": 3.5})
                said.append(f"{cell.cell.backbone} {curves[0].mean():.1f} and {curves[1].mean():.1f}")
            axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 101))
            legend(figure, axes)
            caption = f"{head}: precision against recall, mean over classes and seeds; thick at IoU 0.5, thin at 0.75."
            alt = f"{head}, precision against recall. Areas under the curves at IoU 0.5 and 0.75: {listed(said)}."
            drawings.append(finish(figure, f"precision-{number}", caption, alt))
    return drawings


def reliability(analysis: Analysis) -> list[Figure]:
    """How often detections of a score are right, a drawing per head."""
    drawings = []
    for number, (head, cells) in enumerate(by_head(analysis.judged).items(), start=1):
        with canvas(f"calibration-{number}", WIDTH, HEIGHT) as (figure, axes):
            axes.plot([0, 1], [0, 1], color="#101112", linewidth=1)
            said = []
            for index, cell in enumerate(cells):
                rows = [one.calibration for one in cell.results]
                count = np.sum([row.count for row in rows], axis=0)
                shown = count >= LEAST_SHOWN
                with np.errstate(invalid="ignore"):
                    x, y = (
                        np.sum([np.nan_to_num(part) * row.count for part, row in zip(parts, rows, strict=True)], axis=0)
                        / count
                        for parts in ([row.score for row in rows], [row.right for row in rows])
                    )
                axes.plot(x[shown], y[shown], label=cell.cell.backbone, **look(index))
                said.append(f"{cell.cell.backbone} {np.mean([row.error for row in rows]):.3f}")
            axes.set(xlabel="mean score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
            legend(figure, axes)
            caption = (
                f"{head}: detections in {BINS} bins of score (those with {LEAST_SHOWN} or more), and how many of them "
                "are right at IoU 0.5. On the line, scores are what they say."
            )
            drawings.append(
                finish(figure, f"calibration-{number}", caption, f"{head}, calibration error: {listed(said)}.")
            )
    return drawings
