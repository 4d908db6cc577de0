"""The drawings of a report of detectors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .analysis import Analysis, ArmResult
from .compared import R
from .document import Figure
from .drawings import LEAST_SHOWN, calibrations, draw_interval, second_heads, series
from .errors import KINDS
from .intervals import of_metric
from .precision import RECALLS
from .quality import BINS
from .ranking import by_head
from .results import SIZES
from .svg import canvas, colour, empty, finish, hatch, legend, listed, series_style

CURVES = {
    "ap": "AP, %",
    "mask_ap": "mask AP, %",
    "loss": "training loss",
    "class": "classification loss",
    "l1": "L1 loss of boxes",
    "giou": "GIoU loss of boxes",
    "box": "loss of boxes",
    "mask": "loss of masks",
    "proposal_class": "classification loss of proposals",
    "proposal_box": "loss of proposals' boxes",
}
"""What learning curves are of, each of what its head has of them: AP, the loss that is trained on, and its terms."""
OF_QUERIES = ("ap", "loss", "class", "l1", "giou")
"""What DETR and SMCA-DETR have; their terms are those of the last decoder layer."""
_EVALUATED = ("ap", "mask_ap")


def learning_curves(analysis: Analysis) -> list[Figure]:
    """Curves over epochs, a drawing of each per head; thin lines are seeds, thick ones their mean."""
    drawings, place = [], series(analysis.arms)
    heads = by_head(analysis.arms)
    kinds = {head: _kinds(arms) for head, arms in heads.items()}
    # Heads innermost: two of them stand side by side.
    for what, title in CURVES.items():
        for number, (head, arms) in enumerate(heads.items(), start=1):
            if what not in kinds[head]:
                continue
            with canvas(f"curves-{what}-{number}") as (figure, axes):
                ends = [_curves(axes, place[arm.backbone], arm, what) for arm in arms]
                axes.set(xlabel="epoch", ylabel=title)
                axes.set_xlim(left=0)
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                if what in _EVALUATED:
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


def _kinds(arms: Sequence[ArmResult]) -> Collection[str]:
    """What the curves of one head's arms are of."""
    if not arms[0].experiment.anchors:
        return OF_QUERIES
    rows = [row for arm in arms for record in arm.runs for row in (*record.evaluations, *record.metrics)]
    return {"ap", "loss"}.union(*rows, *(row.get("losses") or () for row in rows))


def _curves(axes: Axes, index: int, arm: ArmResult, what: str) -> str:
    """Draw the curves of one arm; returns its name and last value."""
    curves = [_curve(record.evaluations if what in _EVALUATED else record.metrics, what) for record in arm.runs]
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
    if key in _EVALUATED:
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


def sizes(analysis: Analysis, arms: Sequence[R], title: str = "AP", drawing: str = "sizes") -> Figure:
    """AP of small, medium and large objects with intervals, of these arms of an analysis; title: what it is called."""
    place, second, texts = series(analysis.arms), second_heads(analysis.arms), list[str]()
    with canvas(drawing) as (figure, axes):
        for number, arm in enumerate(arms):
            offset = 0.8 * ((number + 0.5) / len(arms) - 0.5)
            values = [of_metric(arm.sample(name)) for name in SIZES]
            label: str | None = arm.label
            for x, one in enumerate(values):
                draw_interval(axes, x + offset, one, place[arm.backbone], arm.head in second, label)
                label = None if not math.isnan(one.value) else label
            listed_values = ", ".join("none" if math.isnan(one.value) else f"{100 * one.value:.1f}" for one in values)
            texts.append(f"{arm.label} {listed_values}")
        axes.set_xticks(range(len(SIZES)), list(SIZES.values()))
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.5, len(SIZES) - 0.5)
        axes.set_ylabel(f"{title}, %")
        axes.grid(axis="x", visible=False)
        legend(figure, axes)
        caption = f"{title[:1].upper()}{title[1:]} by object size with 95 % intervals."
        alt = f"{title[:1].upper()}{title[1:]} of small, medium and large objects: {'; '.join(texts)}."
        return finish(figure, drawing, caption, alt)


def errors(analysis: Analysis) -> list[Figure]:
    """What each kind of error costs, mean over seeds, a drawing per head on one scale."""
    drawings, place, values = [], series(analysis.arms), {}
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
    drawings, place = [], series(analysis.arms)
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
    drawings, place = [], series(analysis.arms)
    for number, (head, arms) in enumerate(by_head(analysis.evaluated).items(), start=1):
        rows = {arm.backbone: [one.calibration for one in arm.results] for arm in arms}
        caption = (
            f"{head}: detections in {BINS} bins of score (those with {LEAST_SHOWN} or more), and how many of them "
            "are right at IoU 0.5. On the line, scores are right as often as they state."
        )
        drawings.append(calibrations(f"calibration-{number}", rows, place, "mean score", caption, head))
    return drawings
