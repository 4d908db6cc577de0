"""Which arm is better and how surely: every difference with its interval, the ranking in words, and each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Generic

import numpy as np

from .compared import Compared, R
from .document import Column, Section, Table, Value, span
from .intervals import LEVEL, Interval, Part, holm, of_difference, ranks, reach

NO_PAIR = "There is nothing to compare: fewer than two arms have a run that could be evaluated."
UNEVALUATED = "none"


@dataclass(frozen=True)
class Pair(Generic[R]):
    """Two arms and how their metrics differ, a less b, the headline first.

    real: whether the headline differs also when all pairs are considered (Holm).
    """

    a: R
    b: R
    apart: tuple[Interval, ...]
    real: bool

    @property
    def main(self) -> Interval:
        """How the headline metric differs."""
        return self.apart[0]

    @property
    def name(self) -> str:
        """What is subtracted from what."""
        a, b = self.a, self.b
        if a.head == b.head:
            return (
                f"{a.head}: {a.backbone} \N{MINUS SIGN} {b.backbone}"
                if a.head
                else f"{a.label} \N{MINUS SIGN} {b.label}"
            )
        return f"{a.backbone}: {a.head} \N{MINUS SIGN} {b.head}"

    @property
    def sides(self) -> tuple[str, str]:
        """What distinguishes the two."""
        a, b = self.a, self.b
        return (a.backbone, b.backbone) if a.head == b.head else (a.head, b.head)

    @property
    def verdict(self) -> str:
        """In words."""
        if math.isnan(self.main.p):
            return "not measurable"
        if not self.real:
            return "not distinguishable"
        word = "higher" if self.main.value > 0 else "lower"
        return word if self.main.seeds else f"{word} for these runs; seeds not measured"


def pairs_of(arms: Sequence[R], metrics: Sequence[str]) -> list[Pair[R]]:
    """All pairs of backbones under one head, and of heads on one backbone, the one of the higher headline first.

    metrics: that are compared, the headline first.
    """
    found = []
    for one, other in combinations(arms, 2):
        if one.head != other.head and one.backbone != other.backbone:
            continue
        a, b = sorted((one, other), key=lambda arm: -_or(arm.sample(metrics[0]).mean, -1.0))
        apart = tuple(of_difference(a.sample(name), b.sample(name)) for name in metrics)
        found.append(Pair(a, b, apart, real=False))
    real = holm([pair.main.p for pair in found])
    return [replace(pair, real=holds) for pair, holds in zip(found, real, strict=True)]


def differences(pairs: Sequence[Pair[R]], metrics: Sequence[str], images: int, resamples: int) -> Section:
    """Every difference with its interval and what to make of it; metrics: as tables name what `pairs_of` compared."""
    text = [
        f"95 % intervals of the difference in points of {metrics[0]}, from {resamples} resamples of the {images} "
        "validation images, the same ones for all runs, and from the spread over seeds where both sides have several. "
        "The last column considers all rows together: at most 5 % of such tables call any difference real that is not "
        "(Holm; normal theory, from two seeds on, whatever the spreads of the sides). Where a side has one seed, "
        "nothing is known of how much another seed would change, and what is called higher is so of these runs only.",
        _seeds_needed(len(pairs)),
    ]
    if not pairs:
        return Section("differences", "Differences", [NO_PAIR])
    tables = [difference_table(pairs, metrics, "differences", "Pairs")]
    return Section("differences", "Differences", text, tables=tables)


def difference_table(pairs: Sequence[Pair[R]], metrics: Sequence[str], name: str, caption: str) -> Table:
    """A row for each pair; metrics: as for `differences`."""
    points = [Column(title, signed=True) for title in metrics]
    columns = [Column("difference"), *points, Column("p", ".3f", least=0.001), Column(f"{metrics[0]} is")]
    rows: list[list[Value]] = []
    for pair in pairs:
        rows.append([pair.name, *map(span, pair.apart), pair.main.p, pair.verdict])
    return Table(name, caption, columns, rows)


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


def warnings(analysis: Compared[R]) -> list[str]:
    """What a reader must know before comparing: unfair differences, runs left out, and what is odd about others."""
    found = [str(one) for one in analysis.differences if not one.expected]
    found += [f"{folder} is in no mean: {why}" for folder, why in analysis.left_out.items()]
    return found + [f"{folder}: {note}" for folder, notes in analysis.notes.items() for note in notes]


def findings(arms: Sequence[R], pairs: Sequence[Pair[R]], metric: str, title: str, by: str = "") -> list[str]:
    """The ranking in sentences, a head each.

    metric: the headline, title: as sentences name it; by: what else is said of a head's name, where it has another
    ranking.
    """
    sentences = []
    for head, group in by_head(arms).items():
        if len(group) < 2:
            continue
        values = [_or(arm.sample(metric).mean, -1.0) for arm in group]
        distinct = [[_distinct(pairs, one, other) for other in group] for one in group]
        places = ranks(values, distinct)
        order = sorted(range(len(group)), key=lambda index: -values[index])
        listed = ", ".join(
            f"{_place(places[index])} {group[index].backbone} ({100 * values[index]:.1f})" for index in order
        )
        what = head + by if head else title[:1].upper() + title[1:]
        sentences.append(f"{what}: {listed}. {_gap(pairs, group[order[0]], group[order[1]], title)}")
    return sentences


def _gap(pairs: Sequence[Pair[R]], first: R, second: R, title: str) -> str:
    pair = next(pair for pair in pairs if {id(pair.a), id(pair.b)} == {id(first), id(second)})
    shown = Column("", signed=True).text(span(pair.main))
    if not pair.real:
        why = f"is within what other images{' and other seeds' if pair.main.seeds else ''} would give"
        if pair.main.excludes_zero:
            why = f"would be a difference by itself, but one of {len(pairs)} pairs is as far apart by chance too often"
        return f"The first two are not distinguishable: {shown} points of {title} {why}."
    rest = (
        "" if pair.main.seeds else " That holds for these runs on other images; with one seed, not for training again."
    )
    return f"{pair.a.backbone} is above {pair.b.backbone} by {shown} points of {title}.{rest}"


def _place(place: tuple[int, int]) -> str:
    return f"{place[0]}." if place[0] == place[1] else f"{place[0]}.\N{EN DASH}{place[1]}."


def _distinct(pairs: Sequence[Pair[R]], one: R, other: R) -> bool:
    return any(pair.real for pair in pairs if {id(pair.a), id(pair.b)} == {id(one), id(other)})


def by_head(arms: Sequence[R]) -> dict[str, list[R]]:
    """Arms by head, both in their order."""
    groups: dict[str, list[R]] = {}
    for arm in arms:
        groups.setdefault(arm.head, []).append(arm)
    return groups


def limited(pairs: Sequence[Pair[R]]) -> str:
    """What limits "real", where seeds are not in the intervals."""
    return "" if all(pair.main.seeds for pair in pairs) else "; with one seed a side, real of these runs only"


def runs(analysis: Compared[R], metric: str) -> Section:
    """Every run that was named, its status, and why it counts or does not; metric: the headline as tables name it."""
    evaluated = {result.record.folder: result for arm in analysis.arms for result in arm.results}
    columns = [
        Column("run"),
        Column("seed"),
        Column("state"),
        Column("evaluated after epoch"),
        Column(metric, ".2f"),
        Column("last epoch"),
        Column("best epoch"),
        Column(f"best {metric}", ".2f"),
        Column("remarks"),
    ]
    rows: list[list[Value]] = []
    for record in analysis.records:
        result, best = evaluated.get(record.folder), record.logged(record.best)
        seed = None if record.seed is None else str(record.seed)
        remarks = analysis.notes.get(record.folder, ())
        reason = analysis.left_out.get(record.folder)
        rows.append(
            [
                str(record.folder),
                seed,
                record.state,
                record.moment(result.epoch) if result else None,
                100 * result.headline if result else None,
                record.moment(record.last) if record.last else UNEVALUATED,
                record.moment(record.best) if record.best else UNEVALUATED,
                None if best is None else 100 * best,
                f"left out: {reason}" if reason else "; ".join(remarks),
            ]
        )
    return Section("runs", "Runs", tables=[Table("runs", "Every run that was given", columns, rows)])


def _or(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value
