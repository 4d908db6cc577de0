"""What came out of detectors: the headline table, and metrics by size and by class with their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detr_container.measure.costs import Costs

from .analysis import Analysis, ArmResult, MaskArm
from .compared import R, Rated
from .document import Column, Section, Table, Value, span, spread, spread_of
from .intervals import holm, of_difference, of_metric
from .measured import mean
from .published import Known, published
from .ranking import Pair, limited
from .svg import listed

SIZES = {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
_SIX = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
_OF_MASKS = {"ap": "mask AP", "ap50": "mask AP50", "ap75": "mask AP75"}
_PUBLISHED = {**_SIX, "mask_ap": "mask AP"}


def headline(analysis: Analysis, costs: Mapping[str, Costs]) -> Section:
    """The table as papers print it, with what it cost, and what was published beside it."""
    known = {arm.label: published(arm.experiment, analysis.ground.names) for arm in analysis.arms}
    found = [one for one in known.values() if one is not None]
    metrics = [name for name in _PUBLISHED if any(getattr(one.metrics, name) is not None for one in found)]
    masks = _OF_MASKS if analysis.by_masks else {}
    columns = [
        Column("backbone"),
        Column("head"),
        Column("seeds"),
        *(Column(title) for title in _SIX.values()),
        *(Column(title) for title in masks.values()),
        Column("best-epoch AP"),
        Column("parameters, M"),
        Column("GFLOPs", ".2f"),
        Column("images/s"),
        Column("memory, GiB", ".2f"),
        Column("device-hours", ".2f", least=0.01),
        *(Column(_PUBLISHED[name], published=True) for name in metrics),
        *([Column("source", published=True)] if metrics else []),
    ]
    rows: list[list[Value]] = []
    for arm in analysis.arms:
        label = arm.label
        rows.append([*_arm_row(arm, masks, costs.get(label)), *_published_row(known[label], metrics)])
    when = "the last epoch" if analysis.level_epoch is None else f"epoch {analysis.level_epoch} of each run"
    what = "AP of boxes, and mask AP of the detectors that find masks," if masks else "Box AP"
    text = [
        f"{what} in per cent after {when}, mean ± sample standard deviation over seeds. The best-epoch AP is the "
        "highest that the run logged, chosen on the same images and so a little too high: it has a column of its own.",
        "GFLOPs are of a forward pass, a multiply-add counting as two, averaged over the first 100 validation images."
        " Images/s and memory (of one process) are what training logged, device-hours those of its steps, for one run.",
    ]
    if any(arm.experiment.masks for arm in analysis.arms):
        text.append(
            "What Mask R-CNN computes follows from how many objects it finds: its GFLOPs, and latency where that is "
            "measured, are those of as many detections as an image may have (pyramid.detections)."
        )
    if metrics:
        text.append(
            f"Published metrics are of COCO val2017, after {_schedules(analysis, known)}, by their authors; ours never "
            "enter them."
        )
    return Section("results", "Results", text, tables=[Table("results", "Every head on every backbone", columns, rows)])


def _schedules(analysis: Analysis, known: Mapping[str, Known | None]) -> str:
    """After how many epochs the metrics were published, with the heads where that is not the same of all."""
    heads: dict[int, dict[str, None]] = {}
    for arm in analysis.arms:
        if (one := known[arm.label]) is not None:
            heads.setdefault(one.epochs, {})[arm.head] = None
    if len(heads) == 1:
        return f"{next(iter(heads))} epochs"
    return listed([f"{epochs} epochs ({listed(list(names))})" for epochs, names in heads.items()])


def _arm_row(arm: ArmResult, masks: Mapping[str, str], cost: Costs | None) -> list[Value]:
    used, all_runs = len(arm.results), len(arm.runs)
    row: list[Value] = [arm.backbone, arm.head, str(used) if used == all_runs else f"{used} of {all_runs}"]
    row += [spread(arm.sample(name)) if arm.results else None for name in _SIX]
    row += [spread(arm.masks.sample(name)) if arm.masks else None for name in masks]
    best = [result.record.logged(result.record.best) for result in arm.results]
    row.append(spread_of([None if value is None else 100 * value for value in best]))
    row += [cost.parameters.total / 1e6 if cost else None, cost.gflops.total if cost else None]
    logs = [result.measured for result in arm.results]
    row.append(mean([one.images_per_second for one in logs]))
    row.append(max((one.memory_gib for one in logs if one.memory_gib is not None), default=None))
    row.append(mean([one.hours for one in logs]))
    return row


def _published_row(known: Known | None, metrics: Sequence[str]) -> list[Value]:
    if not metrics:
        return []
    if known is None:
        return [None] * (len(metrics) + 1)
    return [*(getattr(known.metrics, name) for name in metrics), known.metrics.source]


def by_size(analysis: Analysis, pairs: Sequence[Pair[ArmResult]], by_masks: Sequence[Pair[MaskArm]]) -> list[Table]:
    """AP of small, medium and large objects with its interval, and how it differs in each pair; by_masks: of masks.

    Columns of mask AP are empty for arms that have none.
    """
    columns = [Column("backbone"), Column("head"), *(Column(f"AP {word}") for word in SIZES.values())]
    rows = [[arm.backbone, arm.head, *_sizes_of(arm)] for arm in analysis.evaluated]
    if analysis.by_masks:
        columns += [Column(f"mask AP {word}") for word in SIZES.values()]
        rows = [[*row, *_sizes_of(arm.masks)] for row, arm in zip(rows, analysis.evaluated, strict=True)]
    caption = "AP by object size: below 32² pixels of area, up to 96², and above, with 95 % intervals"
    found = [Table("sizes", caption, columns, rows)]
    if pairs:
        found.append(_size_differences(pairs, "size-differences", "AP", "Differences by object size"))
    if by_masks:
        caption = "Differences of mask AP by object size"
        found.append(_size_differences(by_masks, "mask-size-differences", "mask AP", caption))
    return found


def _sizes_of(arm: Rated | None) -> list[Value]:
    return [span(of_metric(arm.sample(name))) if arm else None for name in SIZES]


def _size_differences(pairs: Sequence[Pair[R]], name: str, title: str, caption: str) -> Table:
    found = [[of_difference(pair.a.sample(name), pair.b.sample(name)) for name in SIZES] for pair in pairs]
    real = iter(holm([one.p for row in found for one in row]))
    columns = [Column("difference"), *(Column(f"{title} {word}", signed=True) for word in SIZES.values())]
    rows: list[list[Value]] = []
    for pair, row in zip(pairs, found, strict=True):
        holds = [word for word in SIZES.values() if next(real)]
        rows.append([pair.name, *map(span, row), ", ".join(holds) or "none"])
    caption += f", with 95 % intervals; real: in the whole table (Holm){limited(pairs)}"
    return Table(name, caption, [*columns, Column("real")], rows)
