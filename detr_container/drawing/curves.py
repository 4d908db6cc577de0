"""The curves of one training run in one image: loss, metrics, learning rate and gradient norm."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detr_container.base.files import atomic_write
from detr_container.base.terminal import shown

from .fonts import families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TERMS = 6
_FEW = 30


@dataclass(frozen=True)
class Scores:
    """The panel of metrics: its title, the key of each curve by its name, and what values are multiplied by."""

    title: str
    keys: Mapping[str, str]
    scale: float = 100.0


def plot_curves(metrics: Rows, evaluations: Rows, scores: Scores, path: str | Path, title: str = "") -> Path:
    """Draw a run's curves over its epochs into a PNG file, written whole or not at all; returns its path.

    metrics: rows with epoch, loss, losses (a mapping of terms), lr and grad_norm; evaluations: rows with epoch and
    what `scores` names. Whatever is absent, None or not finite is a gap; no rows at all give empty panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = make_figure(metrics, evaluations, scores, title)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return atomic_write(path, lambda file: file.write(buffer.getvalue()))


def make_figure(metrics: Rows, evaluations: Rows, scores: Scores, title: str = "") -> Figure:
    """Make the figure that `plot_curves` writes: panels for loss, scores, learning rate and gradient norm."""
    import matplotlib as mpl

    terms = _largest_terms(metrics)
    # A name with two dollar signs is a name.
    with mpl.rc_context({"text.parse_math": False, "font.family": families(shown("".join((title, *terms))))}):
        return _figure(metrics, evaluations, scores, shown(title), terms)


def _figure(metrics: Rows, evaluations: Rows, scores: Scores, title: str, terms: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=110, layout="constrained")
    ((loss, precision), (rate, norm)) = figure.subplots(2, 2)
    if title:
        figure.suptitle(title, fontweight="bold")
    losses = {"total": _curve(metrics, "loss"), **{shown(name): _curve(metrics, "losses", name) for name in terms}}
    _panel(loss, "Loss", losses, "{:.3g}", logarithmic=True, smooth=True)
    found = {name: _curve(evaluations, key) for name, key in scores.keys.items()}
    _panel(precision, scores.title, {name: (x, scores.scale * y) for name, (x, y) in found.items()}, "{:.1f}")
    _panel(rate, "Learning rate", {"": _curve(metrics, "lr")}, "{:.2g}")
    _panel(norm, "Gradient norm", {"": _curve(metrics, "grad_norm")}, "{:.3g}", logarithmic=True, smooth=True)
    return figure


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return np.nan
    return number if np.isfinite(number) else np.nan


def _curve(rows: Rows, *keys: str) -> Curve:
    """Take epochs [n] and values [n] of one quantity, which `keys` lead to; NaN where a row lacks it."""
    epochs, values = [], []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        epochs.append(_number(row.get("epoch")))
        values.append(_number(value))
    x, y = np.asarray(epochs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    # A row without an epoch has no place on the axis.
    return x[~np.isnan(x)], y[~np.isnan(x)]


def _largest_terms(metrics: Rows) -> list[str]:
    """Choose the terms of the loss to show: all, or the largest on average where there are too many to distinguish."""
    names = list(dict.fromkeys(name for row in metrics for name in row.get("losses") or ()))
    means = {}
    for name in names:
        values = _curve(metrics, "losses", name)[1]
        means[name] = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
    kept = sorted(names, key=lambda name: -means[name])[:_TERMS]
    return [name for name in names if name in kept]


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a centred window of a fortieth of the curve; gaps stay gaps and do not spread."""
    reach = len(values) // 80
    present = np.isfinite(values)
    window = np.ones(2 * reach + 1)
    sums = np.convolve(np.where(present, values, 0.0), window)[reach : reach + len(values)]
    counts = np.convolve(present.astype(np.float64), window)[reach : reach + len(values)]
    return np.where(present, sums / np.maximum(counts, 1), np.nan)


def _panel(
    axes: Axes,
    title: str,
    curves: Mapping[str, Curve],
    form: str,
    logarithmic: bool = False,
    smooth: bool = False,
) -> None:
    """Draw curves with their names and last values at their right ends."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    ends = []
    for colour, (name, (x, y)) in zip(_COLOURS, curves.items(), strict=False):
        present = np.flatnonzero(np.isfinite(y))
        if not present.size:
            continue
        drawn = _smoothed(y) if smooth and len(y) >= 80 else y
        if drawn is not y:
            axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, drawn, color=colour, linewidth=1.6, marker="o", markersize=3.5, markevery=_marked(y))
        last = present[-1]
        ends.append((float(x[last]), float(drawn[last]), f"{name} {form.format(drawn[last])}".strip(), colour))
    if not ends:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", va="center", color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    values = np.concatenate([y[np.isfinite(y)] for _, y in curves.values()])
    if logarithmic and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.08)
    if not logarithmic:
        axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.02 * max(end for end, *_ in ends) or 1)
    _label(axes, ends)


def _marked(values: NDArray[np.float64]) -> list[int]:
    """Choose the points to mark: all of a few, and otherwise those between gaps, which no line would show."""
    padded = np.pad(np.isfinite(values), 1)
    finite, alone = padded[1:-1], ~padded[:-2] & ~padded[2:]
    chosen = finite if finite.sum() <= _FEW else finite & alone
    return [int(index) for index in np.flatnonzero(chosen)]


def _label(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each curve's label beside its end; labels that would overlap move apart."""
    axes.autoscale_view()
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1] for x, y, _, _ in ends]
    order = np.argsort(heights)
    spacing = 0.065
    placed = [heights[index] for index in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + spacing)
    excess = max(0.0, placed[-1] - 1.0)
    placed = [place - excess for place in placed]
    for k in range(len(placed) - 2, -1, -1):
        placed[k] = min(placed[k], placed[k + 1] - spacing)
    for place, index in zip(placed, order, strict=True):
        _, _, text, colour = ends[index]
        axes.text(1.01, place, text, transform=axes.transAxes, color=colour, va="center", fontsize=9)
