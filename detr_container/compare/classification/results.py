"""What came out of classifiers: the headline table, and the images that only one of two gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detr_container.config.published import PublishedTop1
from detr_container.measure.costs import Costs

from ..document import Column, Section, Table, Value, span, spread_of
from ..intervals import of_metric
from ..measured import mean
from ..ranking import Pair
from .analysis import Analysis, ArmResult, RunResult
from .published import published

MACS = 2
"""Operations that a multiply-add counts as."""


def headline(analysis: Analysis, costs: Mapping[str, Costs], milliseconds: Mapping[str, float]) -> Section:
    """The table as papers print it, with what it cost, and what was published beside it. All by arm's label."""
    known = {arm.label: published(arm.experiment, analysis.truth.names) for arm in analysis.arms}
    theirs = any(one is not None for one in known.values())
    columns = [
        Column("backbone"),
        Column("seeds"),
        *(Column(title) for title in analysis.metrics.values()),
        Column("spread of top-1", ".2f"),
        Column("best-epoch top-1"),
        Column("parameters, M", ".3g"),
        Column("GMACs", ".3g"),
        Column("images/s"),
        *([Column("latency, ms")] if milliseconds else []),
        Column("memory, GiB", ".2f"),
        Column("device-hours", ".2f", least=0.01),
        *([Column(name, published=True) for name in ("top-1", "top-5", "source")] if theirs else []),
    ]
    rows: list[list[Value]] = []
    for arm in analysis.arms:
        row = _row(arm, analysis.metrics, costs.get(arm.label), milliseconds)
        rows.append([*row, *(_published_row(known[arm.label]) if theirs else [])])
    when = "the last epoch" if analysis.level_epoch is None else f"epoch {analysis.level_epoch} of each run"
    text = [
        f"Accuracy in per cent after {when}: the mean over seeds with its 95 % interval, over other validation images "
        "and, where there are several seeds, other seeds. Spread of top-1 is the sample standard deviation over seeds. "
        "The best-epoch top-1 is the highest that the run logged, chosen on the same images and so a little too high: "
        "it has a column of its own, and enters nothing else.",
        "GMACs are multiply-adds of a forward pass on one image. Images/s (views, in training) and memory (of one "
        "process) are what training logged, device-hours those of its steps, for one run.",
    ]
    if "top5" not in analysis.metrics:
        text.append(f"With {len(analysis.truth.names)} classes, top-5 says nothing and is left out.")
    if theirs:
        text.append("Published accuracies are of ImageNet's validation set, by their authors; ours never enter them.")
    return Section("results", "Results", text, tables=[Table("results", "Every backbone", columns, rows)])


def _row(
    arm: ArmResult, metrics: Mapping[str, str], cost: Costs | None, milliseconds: Mapping[str, float]
) -> list[Value]:
    used, all_runs = len(arm.results), len(arm.runs)
    row: list[Value] = [arm.label, str(used) if used == all_runs else f"{used} of {all_runs}"]
    row += [span(of_metric(arm.sample(name))) if arm.results else None for name in metrics]
    deviation = arm.sample("top1").deviation if arm.results else None
    row.append(None if deviation is None else 100 * deviation)
    row.append(spread_of([_percent(result.record.logged(result.record.best)) for result in arm.results]))
    row += [cost.parameters.total / 1e6 if cost else None, cost.gflops.total / MACS if cost else None]
    logs = [result.measured for result in arm.results]
    row.append(mean([one.images_per_second for one in logs]))
    if milliseconds:
        row.append(milliseconds.get(arm.label))
    row.append(max((one.memory_gib for one in logs if one.memory_gib is not None), default=None))
    row.append(mean([one.hours for one in logs]))
    return row


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _published_row(known: PublishedTop1 | None) -> list[Value]:
    return [None] * 3 if known is None else [known.value, known.top5, known.source]


def discordant(pairs: Sequence[Pair[ArmResult]], images: int) -> Table:
    """How many images both of a pair get right, only one, or neither: the mean over pairs of runs of one seed."""
    columns = [
        Column("difference"),
        *(Column(f"{who} right", ",.0f") for who in ("both", "only the first", "only the second")),
    ]
    columns += [Column("neither right", ",.0f"), Column("pairs of runs", "d")]
    rows: list[list[Value]] = []
    for pair in pairs:
        couples = couples_of(pair.a, pair.b)
        counts = [_counts(one, other) for one, other in couples]
        row = [spread_of([each[place] for each in counts]) for place in range(4)]
        rows.append([pair.name, *row, len(couples)])
    caption = f"Of {images} images, how many one of two runs gets right and the other does not"
    if not all(_shared(pair.a, pair.b) for pair in pairs):
        caption += "; of arms without a seed in common, runs in the order of their seeds"
    return Table("discordant", caption, columns, rows)


def couples_of(a: ArmResult, b: ArmResult) -> list[tuple[RunResult, RunResult]]:
    """Runs of both with the same seed; where they share none, those in the same place."""
    return _shared(a, b) or list(zip(a.results, b.results, strict=False))


def _shared(a: ArmResult, b: ArmResult) -> list[tuple[RunResult, RunResult]]:
    theirs = {_seed(one): one for one in b.results}
    return [(one, theirs[_seed(one)]) for one in a.results if _seed(one) in theirs]


def _seed(result: RunResult) -> int:
    assert result.record.experiment is not None, "only runs whose settings could be read are evaluated"
    return result.record.experiment.seed


def _counts(a: RunResult, b: RunResult) -> list[float]:
    """Both right, only a, only b, neither."""
    found = [a.right & b.right, a.right & ~b.right, ~a.right & b.right, ~a.right & ~b.right]
    return [float(np.count_nonzero(each)) for each in found]


def data_of(analysis: Analysis) -> dict[str, Any]:
    """Metrics as fractions, run by run, for report.json."""
    runs = {}
    for arm in analysis.evaluated:
        for one in arm.results:
            runs[str(one.record.folder)] = {
                "cell": arm.label,
                "epoch": one.epoch,
                **{name: one.plain[place] for place, name in enumerate(analysis.metrics)},
                "log_loss": one.log_loss,
                "top1_by_class": dict(zip(analysis.truth.names, one.by_class.tolist(), strict=True)),
            }
    return runs
