"""What came out of detectors: the headline table, and metrics by size and by class with their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detr_container.config.published import PublishedAp
from detr_container.measure.costs import Costs

from .analysis import Analysis, ArmResult
from .document import Column, Section, Table, Value, span, spread, spread_of
from .intervals import holm, of_difference, of_metric
from .measured import mean
from .published import published
from .ranking import Pair, limited

SIZES = {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
_SIX = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}


def headline(analysis: Analysis, costs: Mapping[str, Costs]) -> Section:
    """The table as papers print it, with what it cost, and what was published beside it."""
    known = {arm.label: published(arm.experiment, analysis.ground.names) for arm in analysis.arms}
    metrics = [
        name for name in _SIX if any(one is not None and getattr(one, name) is not None for one in known.values())
    ]
    columns = [
        Column("backbone"),
        Column("head"),
        Column("seeds"),
        *(Column(title) for title in _SIX.values()),
        Column("best-epoch AP"),
        Column("parameters, M"),
        Column("GFLOPs", ".2f"),
        Column("images/s"),
        Column("memory, GiB", ".2f"),
        Column("device-hours", ".2f", least=0.01),
        *(Column(_SIX[name], published=True) for name in metrics),
        *([Column("source", published=True)] if metrics else []),
    ]
    rows: list[list[Value]] = []
    for arm in analysis.arms:
        label = arm.label
        rows.append([*_arm_row(arm, costs.get(label)), *_published_row(known[label], metrics)])
    when = "the last epoch" if analysis.level_epoch is None else f"epoch {analysis.level_epoch} of each run"
    text = [
        f"Box AP in per cent after {when}, mean ± sample standard deviation over seeds. The best-epoch AP is the "
        "highest that the run logged, chosen on the same images and so a little too high: it has a column of its own.",
        "GFLOPs are of a forward pass, a multiply-add counting as two, averaged over the first 100 validation images."
        " Images/s and memory (of one process) are what training logged, device-hours those of its steps, for one run.",
    ]
    if metrics:
        text.append("Published metrics are of COCO val2017, after 50 epochs, by their authors; ours never enter them.")
    return Section("results", "Results", text, tables=[Table("results", "Every head on every backbone", columns, rows)])


def _arm_row(arm: ArmResult, cost: Costs | None) -> list[Value]:
    used, all_runs = len(arm.results), len(arm.runs)
    row: list[Value] = [arm.backbone, arm.head, str(used) if used == all_runs else f"{used} of {all_runs}"]
    row += [spread(arm.sample(name)) if arm.results else None for name in _SIX]
    best = [result.record.logged(result.record.best) for result in arm.results]
    row.append(spread_of([None if value is None else 100 * value for value in best]))
    row += [cost.parameters.total / 1e6 if cost else None, cost.gflops.total if cost else None]
    logs = [result.measured for result in arm.results]
    row.append(mean([one.images_per_second for one in logs]))
    row.append(max((one.memory_gib for one in logs if one.memory_gib is not None), default=None))
    row.append(mean([one.hours for one in logs]))
    return row


def _published_row(known: PublishedAp | None, metrics: Sequence[str]) -> list[Value]:
    if not metrics:
        return []
    if known is None:
        return [None] * (len(metrics) + 1)
    return [*(getattr(known, name) for name in metrics), known.source]


def by_size(analysis: Analysis, pairs: Sequence[Pair[ArmResult]]) -> list[Table]:
    """AP of small, medium and large objects with its interval, and how it differs in each pair."""
    columns = [Column("backbone"), Column("head"), *(Column(f"AP {word}") for word in SIZES.values())]
    rows: list[list[Value]] = [
        [arm.backbone, arm.head, *(span(of_metric(arm.sample(name))) for name in SIZES)] for arm in analysis.evaluated
    ]
    caption = "AP by object size: below 32² pixels of area, up to 96², and above, with 95 % intervals"
    return [Table("sizes", caption, columns, rows), *([_size_differences(pairs)] if pairs else [])]


def _size_differences(pairs: Sequence[Pair[ArmResult]]) -> Table:
    found = [[of_difference(pair.a.sample(name), pair.b.sample(name)) for name in SIZES] for pair in pairs]
    real = iter(holm([one.p for row in found for one in row]))
    columns = [Column("difference"), *(Column(f"AP {word}", signed=True) for word in SIZES.values())]
    rows: list[list[Value]] = []
    for pair, row in zip(pairs, found, strict=True):
        holds = [word for word in SIZES.values() if next(real)]
        rows.append([pair.name, *map(span, row), ", ".join(holds) or "none"])
    caption = f"Differences by object size, with 95 % intervals; real: in the whole table (Holm){limited(pairs)}"
    return Table("size-differences", caption, [*columns, Column("real")], rows)
