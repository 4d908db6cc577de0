"""Training curves: the lines are the rows, gaps stay gaps, labels keep apart, and few or no rows do no harm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detr_container.base.terminal import shown
from detr_container.drawing.curves import Scores, _smoothed, make_figure, plot_curves
from detr_container.drawing.fonts import font_with

SCORES = Scores("Average precision, %", {"AP": "ap", "AP50": "ap50"})


def row(step: int, **changes: Any) -> dict[str, Any]:
    losses = {"class": 1.0 / (step + 1), "l1": 0.2, "giou": 0.5}
    values = {"step": step, "epoch": step / 10, "loss": sum(losses.values()), "losses": losses, "lr": 1e-4}
    return {**values, "grad_norm": 3.0 + step % 2, "images_per_second": 9.0, **changes}


def evaluation(epoch: int, ap: float | None) -> dict[str, Any]:
    return {"step": 10 * epoch, "epoch": float(epoch), "ap": ap, "ap50": None if ap is None else 1.5 * ap}


def test_lines_are_the_rows_and_gaps_stay() -> None:
    metrics = [row(step) for step in range(30)]
    metrics[4]["loss"] = math.nan
    metrics[5]["loss"] = None
    metrics[6]["losses"] = {"class": 0.1}
    del metrics[7]["grad_norm"]
    figure = make_figure(metrics, [evaluation(1, 0.1), evaluation(2, None), evaluation(3, 0.3)], SCORES, "a run")
    loss, precision, rate, norm = figure.axes
    total, of_class, of_l1, _ = loss.lines
    np.testing.assert_allclose(total.get_xdata(), [step / 10 for step in range(30)])
    assert np.flatnonzero(np.isnan(total.get_ydata())).tolist() == [4, 5]
    np.testing.assert_allclose(np.delete(of_class.get_ydata(), 6), [1 / (k + 1) for k in range(30) if k != 6])
    assert np.flatnonzero(np.isnan(of_l1.get_ydata())).tolist() == [6]
    np.testing.assert_allclose(precision.lines[0].get_ydata(), [10, np.nan, 30])
    np.testing.assert_allclose(precision.lines[1].get_ydata(), [15, np.nan, 45])
    assert precision.lines[0].get_markevery() == [0, 2]
    assert rate.lines[0].get_ydata()[-1] == 1e-4
    assert np.isnan(norm.lines[0].get_ydata()[7])
    assert [text.get_text() for text in precision.texts] == ["AP 30.0", "AP50 45.0"]


def test_a_metric_that_only_some_models_have_is_a_curve_where_it_is() -> None:
    scores = Scores(SCORES.title, {**SCORES.keys, "mask AP": "mask_ap"})
    rows = [evaluation(epoch, 0.1 * epoch) for epoch in (1, 2, 3)]
    assert len(make_figure([], rows, scores).axes[1].lines) == 2
    with_masks = [row | {"mask_ap": 0.08 * row["epoch"]} for row in rows]
    shown = make_figure([], [rows[0], *with_masks[1:]], scores).axes[1]
    np.testing.assert_allclose(shown.lines[2].get_ydata(), [np.nan, 16, 24])
    assert {text.get_text() for text in shown.texts} == {"AP 30.0", "AP50 45.0", "mask AP 24.0"}
    heights = sorted(text.get_position()[1] for text in shown.texts)
    assert min(np.diff(heights)) > 0.06


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-100, 100)), min_size=1, max_size=400))
def test_smoothing_is_the_mean_of_the_neighbours_that_exist(values: list[float]) -> None:
    reach = len(values) // 80
    expected = []
    for index, value in enumerate(values):
        near = [other for other in values[max(0, index - reach) : index + reach + 1] if not math.isnan(other)]
        expected.append(math.nan if math.isnan(value) else sum(near) / len(near))
    np.testing.assert_allclose(_smoothed(np.array(values, dtype=np.float64)), expected, atol=1e-9)


def test_noisy_curves_are_smoothed_with_the_raw_ones_behind() -> None:
    metrics = [row(step, grad_norm=5.0 + (-1) ** step) for step in range(800)]
    raw, smooth = make_figure(metrics, [], SCORES).axes[3].lines
    assert raw.get_alpha() == pytest.approx(0.2)
    assert np.ptp(raw.get_ydata()) == 2
    assert np.ptp(smooth.get_ydata()[20:-20]) < 0.2


def test_points_between_gaps_are_marked() -> None:
    evaluations = [evaluation(epoch, 0.2 if epoch < 40 or epoch == 45 else None) for epoch in range(50)]
    assert make_figure([], evaluations, SCORES).axes[1].lines[0].get_markevery() == [45]


def test_scales_and_labels_of_close_curves() -> None:
    losses = {f"term {index}": 1.0 + index / 1000 for index in range(9)}
    metrics = [row(step, losses=losses, loss=10.0 - step / 100, grad_norm=10.0 ** (step % 3)) for step in range(10)]
    figure = make_figure(metrics, [], SCORES)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "linear", "log"]
    texts = figure.axes[0].texts
    shown = sorted(text.get_text().rsplit(" ", 1)[0] for text in texts)
    assert shown == sorted(["total", *(f"term {index}" for index in range(3, 9))])
    heights = sorted(text.get_position()[1] for text in texts)
    assert min(np.diff(heights)) > 0.06
    assert 0 <= heights[0] < heights[-1] <= 1


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_give_a_readable_file(tmp_path: Path, rows: int) -> None:
    metrics = [row(step) for step in range(rows)]
    path = plot_curves(
        metrics, [evaluation(epoch, 0.0) for epoch in range(rows)], SCORES, tmp_path / "runs" / "curves.png"
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        assert np.ptp(np.asarray(image.convert("L"))) > 200
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_rows_without_values_and_without_an_epoch() -> None:
    figure = make_figure(
        [{"step": 1, "loss": 3.0}, {"epoch": 1.0, "losses": None, "lr": math.inf}], [{"epoch": 1}], SCORES
    )
    assert all(not axes.lines for axes in figure.axes)
    assert all(axes.texts[0].get_text() == "nothing recorded yet" for axes in figure.axes)


def test_names_are_text_in_a_font_that_has_their_letters(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    name = "$x_1$ \n\x1b[31m" + ("红细胞" if font_with(frozenset("红细胞")) else "κύτταρο")
    metrics = [{**row(step), "losses": {"$a$ $\\b": 1.0, "l\ng": 2.0}} for step in range(3)]
    figure = make_figure(metrics, [], SCORES, name)
    texts = list(figure.axes[0].texts)
    assert figure.get_suptitle() == shown(name)
    assert {text.get_text() for text in texts} == {"total 1.03", "$a$ $\\b 1", "l\\ng 2"}
    assert not any(text.get_parse_math() for text in texts)
    plot_curves(metrics, [], SCORES, tmp_path / "curves.png", name)
    assert not [str(warning.message) for warning in recwarn if "missing from font" in str(warning.message)]
