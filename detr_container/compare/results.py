"""What came out: the headline table, every difference with its interval, metrics by size and by class, and each run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from detr_container.config.published import PublishedAp
from detr_container.measure.costs import Costs

from .analysis import Analysis, ArmResult
from .document import Column, Section, Spread, Table, Value, span, spread
from .intervals import LEVEL, Interval, Part, holm, of_difference, of_metric, ranks, reach
from .measured import mean
from .published import published

MOST_CLASSES = 5
SIZES = {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
_SIX = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
NO_PAIR = "There is nothing to compare: fewer than two arms have a run that could be evaluated."


@dataclass(frozen=True)
class Pair:
    """Two arms and how their AP differs, a less b. real: also when all pairs are considered (Holm)."""

    a: ArmResult
    b: ArmResult
    ap: Interval
    ap50: Interval
    ap75: Interval
    real: bool

    @property
    def name(self) -> str:
        """What is subtracted from what."""
        a, b = self.a, self.b
        if a.head == b.head:
            return f"{a.head}: {a.backbone} \N{MINUS SIGN} {b.backbone}"
        return f"{a.backbone}: {a.head} \N{MINUS SIGN} {b.head}"

    @property
    def sides(self) -> tuple[str, str]:
        """What distinguishes the two."""
        a, b = self.a, self.b
        return (a.backbone, b.backbone) if a.head == b.head else (a.head, b.head)

    @property
    def verdict(self) -> str:
        """In words."""
        if math.isnan(self.ap.p):
            return "not measurable"
        if not self.real:
            return "not distinguishable"
        word = "higher" if self.ap.value > 0 else "lower"
        return word if self.ap.seeds else f"{word} for these runs; seeds not measured"


def pairs_of(analysis: Analysis) -> list[Pair]:
    """All pairs of backbones under one head, and of heads on one backbone, the one of higher AP first."""
    found = []
    for one, other in combinations(analysis.evaluated, 2):
        if one.head != other.head and one.backbone != other.backbone:
            continue
        a, b = sorted((one, other), key=lambda arm: -_or(arm.sample("ap").mean, -1.0))
        ap, ap50, ap75 = (of_difference(a.sample(name), b.sample(name)) for name in ("ap", "ap50", "ap75"))
        found.append(Pair(a, b, ap, ap50, ap75, real=False))
    real = holm([pair.ap.p for pair in found])
    return [replace(pair, real=holds) for pair, holds in zip(found, real, strict=True)]


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
        Column("device-hours", ".2f"),
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
    best = [result.record.ap(result.record.best) for result in arm.results]
    known = 100 * np.array([value for value in best if value is not None])
    deviation = float(known.std(ddof=1)) if len(known) > 1 else None
    row.append(Spread(float(known.mean()), deviation, len(known)) if len(known) else None)
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


def differences(pairs: Sequence[Pair], images: int, resamples: int) -> Section:
    """Every difference with its interval and what to make of it."""
    text = [
        f"95 % intervals of the difference in points of AP, from {resamples} resamples of the {images} validation "
        "images, the same ones for all runs, and from the spread over seeds where both sides have several. "
        "The last column considers all rows together: at most 5 % of such tables call any difference real that is not "
        "(Holm; normal theory, from two seeds on, whatever the spreads of the sides). Where a side has one seed, "
        "nothing is known of how much another seed would change, and what is called higher is so of these runs only.",
        _seeds_needed(len(pairs)),
    ]
    if not pairs:
        return Section("differences", "Differences", [NO_PAIR])
    points = [Column(title, signed=True) for title in ("AP", "AP50", "AP75")]
    columns = [Column("difference"), *points, Column("p", ".3f", least=0.001), Column("AP is")]
    rows: list[list[Value]] = []
    for pair in pairs:
        rows.append([pair.name, span(pair.ap), span(pair.ap50), span(pair.ap75), pair.ap.p, pair.verdict])
    return Section("differences", "Differences", text, tables=[Table("differences", "Pairs", columns, rows)])


def _seeds_needed(pairs: int) -> str:
    """What a difference must be to be real, by the number of seeds: two rarely suffice."""
    by_itself, among = (
        [f"{float(reach([Part(np.ones(()), seeds - 1)], p)):.1f}" for seeds in (2, 3, 5)]
        for p in (1 - LEVEL, (1 - LEVEL) / max(1, pairs))
    )
    return (
        f"With 2, 3 and 5 seeds a side an interval reaches {by_itself[0]}, {by_itself[1]} and {by_itself[2]} standard "
        f"errors of the spread over seeds, and to be the first of {pairs} to be called real a difference must be "
        f"{among[0]}, {among[1]} and {among[2]} of them: two seeds tell apart only what is very far apart, three or "
        "more are needed otherwise."
    )


def warnings(analysis: Analysis) -> list[str]:
    """What a reader must know before comparing: unfair differences, runs left out, and what is odd about others."""
    found = [str(one) for one in analysis.differences if not one.expected]
    found += [f"{folder} is in no mean: {why}" for folder, why in analysis.left_out.items()]
    return found + [f"{folder}: {note}" for folder, notes in analysis.notes.items() for note in notes]


def findings(analysis: Analysis, pairs: Sequence[Pair]) -> list[str]:
    """The ranking in sentences, a head each."""
    sentences = []
    for head, arms in by_head(analysis.evaluated).items():
        if len(arms) < 2:
            continue
        values = [_or(arm.sample("ap").mean, -1.0) for arm in arms]
        distinct = [[_distinct(pairs, one, other) for other in arms] for one in arms]
        places = ranks(values, distinct)
        order = sorted(range(len(arms)), key=lambda index: -values[index])
        listed = ", ".join(
            f"{_place(places[index])} {arms[index].backbone} ({100 * values[index]:.1f})" for index in order
        )
        sentences.append(f"{head}: {listed}. {_gap(pairs, arms[order[0]], arms[order[1]])}")
    return sentences


def _gap(pairs: Sequence[Pair], first: ArmResult, second: ArmResult) -> str:
    pair = next(pair for pair in pairs if {id(pair.a), id(pair.b)} == {id(first), id(second)})
    shown = Column("", signed=True).text(span(pair.ap))
    if not pair.real:
        why = f"is within what other images{' and other seeds' if pair.ap.seeds else ''} would give"
        if pair.ap.excludes_zero:
            why = f"would be a difference by itself, but one of {len(pairs)} pairs is as far apart by chance too often"
        return f"The first two are not distinguishable: {shown} points of AP {why}."
    rest = "" if pair.ap.seeds else " That holds for these runs on other images; with one seed, not for training again."
    return f"{pair.a.backbone} is above {pair.b.backbone} by {shown} points of AP.{rest}"


def _place(place: tuple[int, int]) -> str:
    return f"{place[0]}." if place[0] == place[1] else f"{place[0]}.\N{EN DASH}{place[1]}."


def _distinct(pairs: Sequence[Pair], one: ArmResult, other: ArmResult) -> bool:
    return any(pair.real for pair in pairs if {id(pair.a), id(pair.b)} == {id(one), id(other)})


def by_head(arms: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Arms by head, both in their order."""
    groups: dict[str, list[ArmResult]] = {}
    for arm in arms:
        groups.setdefault(arm.head, []).append(arm)
    return groups


def by_size(analysis: Analysis, pairs: Sequence[Pair]) -> list[Table]:
    """AP of small, medium and large objects with its interval, and how it differs in each pair."""
    columns = [Column("backbone"), Column("head"), *(Column(f"AP {word}") for word in SIZES.values())]
    rows: list[list[Value]] = [
        [arm.backbone, arm.head, *(span(of_metric(arm.sample(name))) for name in SIZES)] for arm in analysis.evaluated
    ]
    caption = "AP by object size: below 32² pixels of area, up to 96², and above, with 95 % intervals"
    return [Table("sizes", caption, columns, rows), *([_size_differences(pairs)] if pairs else [])]


def _size_differences(pairs: Sequence[Pair]) -> Table:
    found = [[of_difference(pair.a.sample(name), pair.b.sample(name)) for name in SIZES] for pair in pairs]
    real = iter(holm([one.p for row in found for one in row]))
    columns = [Column("difference"), *(Column(f"AP {word}", signed=True) for word in SIZES.values())]
    rows: list[list[Value]] = []
    for pair, row in zip(pairs, found, strict=True):
        holds = [word for word in SIZES.values() if next(real)]
        rows.append([pair.name, *map(span, row), ", ".join(holds) or "none"])
    caption = f"Differences by object size, with 95 % intervals; real: in the whole table (Holm){_limited(pairs)}"
    return Table("size-differences", caption, [*columns, Column("real")], rows)


def _limited(pairs: Sequence[Pair]) -> str:
    """What limits "real", where seeds are not in the intervals."""
    return "" if all(pair.ap.seeds for pair in pairs) else "; with one seed a side, real of these runs only"


def by_class(analysis: Analysis, pairs: Sequence[Pair]) -> Iterator[Table]:
    """For each pair: the classes that gain and those that lose most."""
    ground = analysis.ground
    counts = np.bincount(ground.label[~ground.crowd], minlength=len(ground.names))
    present = np.flatnonzero(counts).tolist()
    for number, pair in enumerate(pairs, start=1):
        found = {k: of_difference(pair.a.class_sample(k), pair.b.class_sample(k)) for k in present}
        real = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
        order = sorted(present, key=lambda k: -found[k].value)
        shown = order if len(order) <= 2 * MOST_CLASSES else [*order[:MOST_CLASSES], *order[-MOST_CLASSES:]]
        columns = [
            Column("class"),
            Column("objects", "d"),
            *map(Column, pair.sides),
            Column("difference", signed=True),
            Column("real among all classes"),
        ]
        rows: list[list[Value]] = []
        for k in shown:
            means = [100 * arm.class_sample(k).mean for arm in (pair.a, pair.b)]
            rows.append([ground.names[k], int(counts[k]), *means, span(found[k]), real[k]])
        caption = f"{pair.name}: {'all' if shown is order else 'the most gaining and losing of'} {len(order)} classes"
        caption += _limited([pair])
        yield Table(f"classes-{number}", caption, columns, rows)


def runs(analysis: Analysis) -> Section:
    """Every run that was named, its status, and why it counts or does not."""
    evaluated = {result.record.folder: result for arm in analysis.arms for result in arm.results}
    columns = [
        Column("run"),
        Column("seed"),
        Column("state"),
        Column("evaluated after epoch"),
        Column("AP", ".2f"),
        Column("last epoch"),
        Column("best epoch"),
        Column("best AP", ".2f"),
        Column("remarks"),
    ]
    rows: list[list[Value]] = []
    for record in analysis.records:
        result, best = evaluated.get(record.folder), record.ap(record.best)
        seed = str(record.experiment.seed) if record.experiment else None
        remarks = analysis.notes.get(record.folder, ())
        reason = analysis.left_out.get(record.folder)
        rows.append(
            [
                str(record.folder),
                seed,
                record.state,
                str(result.epoch) if result else None,
                100 * float(result.plain[0]) if result else None,
                str(record.last or UNEVALUATED),
                str(record.best or UNEVALUATED),
                None if best is None else 100 * best,
                f"left out: {reason}" if reason else "; ".join(remarks),
            ]
        )
    return Section("runs", "Runs", tables=[Table("runs", "Every run that was given", columns, rows)])


UNEVALUATED = "none"


def _or(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value
